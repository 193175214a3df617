package admin

import (
	"context"
	"fmt"
	"io"
	"net/http"

	"wormhole/edge/backup"
)

// BackedUp is what the API asks of an edge of which backups can be taken.
type BackedUp interface {
	Backup(ctx context.Context) (*backup.Archive, error)
}

// serveBackup answers with the file itself. It ends with a checksum, so that an
// answer that was cut off is noticed.
func serveBackup(b BackedUp) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		a, err := b.Backup(r.Context())
		if err != nil {
			writeError(w, asError(err))
			return
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		_ = a.Write(w)
	}
}

// Backup takes a backup of the edge.
func (c *Client) Backup(ctx context.Context) (*backup.Archive, error) {
	var a *backup.Archive
	err := c.receive(ctx, http.MethodGet, "/v1/backup", "", nil, func(body io.Reader) (err error) {
		if a, err = backup.Parse(body); err != nil {
			err = fmt.Errorf("the edge's answer: %w", err)
		}
		return err
	})
	return a, err
}
