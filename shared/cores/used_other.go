//go:build !unix

package cores

import "time"

// used would be the processor time of this process.
func used() (d time.Duration, known bool) { return 0, false }
