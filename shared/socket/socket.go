// Package socket reads and writes TCP connections at the cost of the system call
// alone.
//
// The standard library tells the scheduler before each read and write that the
// thread may be away for long, so that others can go on without it. A socket of the
// net package never blocks, so this is never true; but it makes the runtime's
// monitor thread get up and look around every 20 µs until the process is idle again.
// With few requests at a time that thread alone took a fifth of the CPU.
package socket

import "net"

// Direct returns a connection that behaves as c in all but cost. Who has it must not
// read from or write to c itself at the same time, and closes it or c. What is no
// TCP connection, and where there is no such way, is returned as it is.
func Direct(c net.Conn) net.Conn {
	if tcp, ok := c.(*net.TCPConn); ok {
		return direct(tcp)
	}
	return c
}

// TCP is the TCP connection that c is or was made from by Direct; nil if there is
// none. It is for options of the socket.
func TCP(c net.Conn) *net.TCPConn {
	switch c := c.(type) {
	case *net.TCPConn:
		return c
	case interface{ tcp() *net.TCPConn }:
		return c.tcp()
	}
	return nil
}
