package cli

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
)

// fetchDockerfile opens the Dockerfile that -f names by its URL. The caller
// closes it.
func (a *App) fetchDockerfile(ctx context.Context, from string) (io.ReadCloser, error) {
	resp, err := a.Remote().Fetch(ctx, from)
	if err != nil {
		return nil, fmt.Errorf("failed to download the Dockerfile: %w", err) // it names the URL, redacted
	}
	if resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		return nil, fmt.Errorf("failed to download the Dockerfile %s: %s", withoutPassword(from), resp.Status)
	}
	return resp.Body, nil
}

// withoutPassword is a URL fit to be shown.
func withoutPassword(from string) string {
	u, err := url.Parse(from)
	if err != nil {
		return "of a URL that cannot be parsed"
	}
	return u.Redacted()
}
