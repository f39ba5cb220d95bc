package remote_test

import (
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/strake-project/strake/internal/content"
	"github.com/strake-project/strake/internal/content/remote"
	"github.com/strake-project/strake/internal/ocitest"
)

// TestSuite runs the shared suite over Debian's registry and over ours for
// tests, with and without the referrers API. Source and Sink are two clients,
// so that nothing passes between them but through the registry.
func TestSuite(t *testing.T) {
	for name, start := range map[string]func(t *testing.T) string{
		"docker-registry": func(t *testing.T) string { return debian(t, "") },
		"flaky":           func(t *testing.T) string { return ocitest.NewFlaky(t).Host() },
		"flaky with referrers": func(t *testing.T) string {
			f := ocitest.NewFlaky(t)
			f.Referrers, f.PageSize = true, 2
			return f.Host()
		},
	} {
		t.Run(name, func(t *testing.T) {
			host := start(t)
			var n atomic.Int64
			ocitest.Run(t, func(t *testing.T) ocitest.End {
				r := mustRef(t, fmt.Sprintf("%s/suite/r%d", host, n.Add(1)))
				return ocitest.End{
					Sink:   client(remote.Options{}).Repository(r),
					Source: func(*testing.T) content.Source { return client(remote.Options{}).Repository(r) },
					Ref:    r,
					Strict: name == "docker-registry",
				}
			})
		})
	}
}
