// Package balance decides which tunnel takes the next request of a site.
//
// A Backend is one app instance behind one tunnel; it knows how many requests are
// in flight in it and whether it is fit to take more. A Pool is the backends of a
// site. Pool.Pick takes two of them at random and chooses the one with fewer
// requests in flight (the power of two random choices): as good as knowing all
// loads, without anybody having to.
//
// A backend that fails leaves the choice and comes back by itself after a time
// that grows with each failure, at first for a share of the requests only. When no
// backend is fit, Pick tries an unfit one rather than none.
package balance
