package middleware

import (
	"net/http"
	"strconv"
	"strings"

	"wormhole/shared/hostname"
)

// Redirect answers plain HTTP: sites whose rules say so are moved to https, with the
// same host, path and query (308, which keeps the method); the others go to next.
// Hosts that are no site are refused. httpsPort is where https is reached, 0 meaning
// 443.
func Redirect(sites Lookup, httpsPort int, refuse Refuse) func(http.Handler) http.Handler {
	port := ""
	if httpsPort != 0 && httpsPort != 443 {
		port = ":" + strconv.Itoa(httpsPort)
	}
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			host, err := hostname.FromHostHeader(r.Host)
			if err != nil {
				refuse(w, r, Refusal{Status: http.StatusBadRequest, Code: "bad_host", Text: "The request names no valid host."})
				return
			}
			s, ok := sites.Lookup(host)
			if !ok {
				refuse(w, r, Refusal{Status: http.StatusNotFound, Code: "no_such_site", Text: "There is no site with this name here."})
				return
			}
			if !s.Rules().RedirectHTTP {
				next.ServeHTTP(w, r)
				return
			}
			target := r.URL.RequestURI()
			if !strings.HasPrefix(target, "/") { // "OPTIONS *", CONNECT
				refuse(w, r, Refusal{Status: http.StatusBadRequest, Code: "bad_request", Text: "The request names no path."})
				return
			}
			w.Header().Set("Location", "https://"+host+port+target)
			w.Header().Set("Content-Length", "0")
			w.WriteHeader(http.StatusPermanentRedirect)
		})
	}
}
