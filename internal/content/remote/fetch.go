package remote

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"

	"github.com/strake-project/strake/internal/oci"
)

// Fetch asks an ordinary web server for a file, once. The caller closes the
// answer's body, whatever its status. No error holds the URL's password, and a
// server that it redirects to is not told where from: a URL may be a secret.
func (c *Client) Fetch(ctx context.Context, from string) (*http.Response, error) {
	req, err := http.NewRequest(http.MethodGet, from, nil)
	if err != nil {
		return nil, fmt.Errorf("not a URL: %w", oci.ErrInvalid) // err would quote it
	}
	req.Header.Set("User-Agent", c.opt.UserAgent)
	w := newWatch(ctx, c.opt.Timing.Stall)
	client := &http.Client{Transport: c.opt.Transport, CheckRedirect: func(req *http.Request, via []*http.Request) error {
		req.Header.Del("Referer")
		if len(via) >= maxRedirects {
			return fmt.Errorf("stopped after %d redirects", maxRedirects)
		}
		return nil
	}}
	if client.Transport == nil {
		client.Transport = newTransport(nil)
	}
	resp, err := client.Do(req.WithContext(w.ctx))
	if err != nil {
		cause := w.cause(err)
		w.stop()
		var named *url.Error
		switch {
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case cause == errStalled && errors.As(err, &named):
			return nil, &url.Error{Op: named.Op, URL: named.URL, Err: errStalled}
		}
		return nil, err
	}
	w.pause()
	resp.Body = &watchedBody{rc: resp.Body, w: w}
	return resp, nil
}
