// Package oracle judges whether a network loses, repeats, delays or changes
// requests, by looking at both of its ends. The client side stamps every request
// with an id and knows the bytes it sent and should get; the app side logs what it
// saw. Judge joins the two:
//
//   - failed: a transport error, an answer that is not the app's, truncated or
//     altered bytes, or more than SlowAfter;
//   - duplicated: the app saw an id twice.
//
// The load generator is an open loop: requests start when they are due, whether or
// not earlier ones have been answered, and their time counts from when they were
// due. Clients do not cover up. Over HTTP/1.1 a request is sent again only if not
// one byte of it had left; over HTTP/2 and HTTP/3 only if the server said that it
// did not process it (GOAWAY, REFUSED_STREAM, H3_REQUEST_REJECTED). What Go's
// client would do beyond that, such as sending a GET again when a reused
// connection dies, is switched off.
package oracle
