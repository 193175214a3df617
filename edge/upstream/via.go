package upstream

// Via names the backend behind the stream when the stream itself knows it: one
// that goes through another edge is answered by a backend which that edge chose.
// It is empty otherwise. Call it before Close.
func (x *Response) Via() string {
	if x.c == nil {
		return ""
	}
	if named, ok := x.c.stream.(interface{ Backend() string }); ok {
		return named.Backend()
	}
	return ""
}
