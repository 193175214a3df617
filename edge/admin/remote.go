package admin

import (
	"context"
	"net/http"

	"wormhole/edge/authority"
)

var _ Tokens = (*Client)(nil)

// IssueToken issues a token by the running edge.
func (c *Client) IssueToken(ctx context.Context, req authority.IssueRequest) (out authority.Issued, err error) {
	err = c.Call(ctx, http.MethodPost, "/v1/tokens", req, &out)
	return out, err
}

// List lists the issued tokens.
func (c *Client) List(ctx context.Context) (out []authority.TokenInfo, err error) {
	err = c.Call(ctx, http.MethodGet, "/v1/tokens", nil, &out)
	return out, err
}

// Inspect tells what a token, or the token of an id, may do.
func (c *Client) Inspect(ctx context.Context, tokenOrID string) (out authority.Inspection, err error) {
	err = c.Call(ctx, http.MethodPost, "/v1/tokens/inspect", idBody{tokenOrID}, &out)
	return out, err
}

// Revoke takes a token back.
func (c *Client) Revoke(ctx context.Context, idOrName string) (out authority.TokenInfo, err error) {
	err = c.Call(ctx, http.MethodPost, "/v1/tokens/revoke", idBody{idOrName}, &out)
	return out, err
}

// ListKeys lists the signing keys.
func (c *Client) ListKeys(ctx context.Context) (out []authority.KeyInfo, err error) {
	err = c.Call(ctx, http.MethodGet, "/v1/keys", nil, &out)
	return out, err
}

// Rotate makes a new signing key active.
func (c *Client) Rotate(ctx context.Context) (out authority.KeyInfo, err error) {
	err = c.Call(ctx, http.MethodPost, "/v1/keys/rotate", nil, &out)
	return out, err
}

// RemoveKey removes a signing key and with it every token that it signed.
func (c *Client) RemoveKey(ctx context.Context, id string) (out authority.KeyInfo, err error) {
	err = c.Call(ctx, http.MethodPost, "/v1/keys/remove", idBody{id}, &out)
	return out, err
}
