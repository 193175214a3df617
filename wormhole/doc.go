// Command wormhole is the agent: it connects an app to the edges over tunnels that
// it dials, and edges send the app's requests through them.
//
//	wormhole [flags] [--] CMD ARGS...   starts the app and looks after it
//	wormhole [flags]                    serves an app that somebody else starts
//
// See `wormhole --help` for flags, environment variables and exit statuses.
package main
