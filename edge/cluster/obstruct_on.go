//go:build obstruct

package cluster

import (
	"os"
	"path/filepath"
)

// obstruct blocks for ever, with the lock held, once a file "obstruct" is in the
// data directory. Only binaries built with the tag of this file have it.
func (c *Cluster) obstruct() {
	if _, err := os.Stat(filepath.Join(c.cfg.Dir, "obstruct")); err == nil {
		c.mu.Lock()
		select {}
	}
}
