// Package usage counts what each site uses, and keeps the totals of each calendar
// month (UTC) in the store: requests by class of status, bytes of bodies, WebSockets
// and raw TCP connections both ways, and how many such connections there were.
//
// # Counting
//
// A Counter hangs on its site, so that a request that has found its site has found
// its counter. Counting is some atomic additions; only the first count after each
// flush takes a lock, to put the counter on the list of those that have something.
// What nobody asks for has no counter and costs nothing. Names that are no site have
// none either: whoever invents names makes no rows.
//
// # Writing
//
// A Meter adds what was counted to the rows of the month, about once a minute and at
// a drain. A row holds some hundreds of sites and belongs to no edge: every edge adds
// to it by compare-and-set, so that nobody overwrites anybody's counts and an edge
// that is gone needs no looking after. Where two edges put the same site into
// different rows, the sum is the total all the same.
//
// # Guarantees
//
// Nothing counts twice. A row names the last batch that each of its writers added; a
// batch whose fate is unknown, because the store did not answer, is tried again
// unchanged, and is dropped if the row names it. Where the row cannot tell any more,
// since very many other writers came between, the batch is taken as written.
//
// A process that is killed loses what it counted since its last flush, which is a
// minute and a quarter at most, and longer only while the store cannot be reached:
// until then counts wait in memory.
//
// A row that cannot be read is left as it is, is not part of the totals, and is named
// beside them.
package usage
