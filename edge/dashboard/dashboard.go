// Package dashboard is the page that draws what the operator's API says. The page
// itself holds nothing secret: it asks for the credential of the edge's data
// directory, keeps it in the tab's session storage and sends it as a bearer
// token, so that there is no cookie for another site to ride on.
package dashboard

import (
	_ "embed" // the page
	"net/http"
)

//go:embed page.html
var page []byte

// policy lets the page run its own inline script and style and talk to its own
// origin; nothing else.
const policy = "default-src 'none'; connect-src 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// Handler serves the page at its own root.
func Handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
			return
		}
		h := w.Header()
		h.Set("Content-Type", "text/html; charset=utf-8")
		h.Set("Content-Security-Policy", policy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cache-Control", "no-cache")
		_, _ = w.Write(page)
	})
}
