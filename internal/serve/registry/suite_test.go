package registry

import (
	"fmt"
	"net/url"
	"sync/atomic"
	"testing"

	"github.com/strake-project/strake/internal/content"
	"github.com/strake-project/strake/internal/content/remote"
	"github.com/strake-project/strake/internal/oci/ref"
	"github.com/strake-project/strake/internal/ocitest"
)

// TestSuite runs the shared suite through our client over our server. A fresh
// store each time: blobs are known to all of its repositories.
func TestSuite(t *testing.T) {
	var n atomic.Int64
	ocitest.Run(t, func(t *testing.T) ocitest.End {
		srv, _ := serve(t)
		r := repository(t, srv.URL, fmt.Sprintf("suite/r%d", n.Add(1)))
		return ocitest.End{
			Sink:   remote.New(remote.Options{}).Repository(r),
			Source: func(*testing.T) content.Source { return remote.New(remote.Options{}).Repository(r) },
			Ref:    r,
			Strict: true,
		}
	})
}

func repository(t *testing.T, base, name string) ref.Ref {
	t.Helper()
	u, err := url.Parse(base)
	if err != nil {
		t.Fatal(err)
	}
	r, err := ref.Parse(u.Host + "/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return r
}
