//go:build !obstruct

package cluster

// obstruct does nothing, but in a binary that is built to test the watchdog.
func (c *Cluster) obstruct() {}
