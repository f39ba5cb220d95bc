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
func fetchDockerfile(ctx context.Context, from string) (io.ReadCloser, error) {
	shown := from
	if u, err := url.Parse(from); err == nil {
		shown = u.Redacted()
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, from, nil)
	if err != nil {
		return nil, fmt.Errorf("Dockerfile %s: not a URL", shown)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, fmt.Errorf("failed to download the Dockerfile: %w", err) // it names the URL, redacted
	}
	if resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		return nil, fmt.Errorf("failed to download the Dockerfile %s: %s", shown, resp.Status)
	}
	return resp.Body, nil
}
