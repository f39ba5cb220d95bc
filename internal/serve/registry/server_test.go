package registry

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/strake-project/strake/internal/content"
	"github.com/strake-project/strake/internal/content/remote"
	"github.com/strake-project/strake/internal/content/store"
	"github.com/strake-project/strake/internal/ocitest"
)

// running is a server of its own over a store that stays.
func running(t *testing.T, root string) (base string, stop func() error) {
	t.Helper()
	s, err := store.Open(root, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, l, s, Options{}) }()
	stop = func() error {
		cancel()
		err := <-done
		s.Close()
		return err
	}
	return "http://" + l.Addr().String(), stop
}

func TestServeStopsAndStartsAgain(t *testing.T) {
	root := t.TempDir()
	base, stop := running(t, root)
	r := repository(t, base, "again/app").WithTag("v1")
	im := ocitest.Two()
	if _, err := content.Copy(t.Context(), remote.New(remote.Options{}).Repository(r), r, ocitest.Fill(r, im), r, content.CopyOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := stop(); err != nil {
		t.Errorf("stopping is an error: %v", err)
	}
	base, stop = running(t, root)
	r = repository(t, base, "again/app").WithTag("v1")
	src := remote.New(remote.Options{}).Repository(r)
	if _, err := content.Copy(t.Context(), ocitest.NewMemory(), r, src, r, content.CopyOptions{}); err != nil {
		t.Errorf("after a restart: %v", err)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

func TestServeLetsAnUploadFinish(t *testing.T) {
	base, stop := running(t, t.TempDir())
	b := ocitest.Plain().Layers()[1]
	// A spare connection that was never used would hold Shutdown for seconds.
	one := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	a := api{t, &httptest.Server{URL: base}, one}
	at := base + a.want(a.do("POST", "/v2/slow/blobs/uploads/", nil), 202, "").Header.Get("Location")
	body, feed := io.Pipe()
	status := make(chan string, 1)
	go func() {
		r, err := http.NewRequest("PATCH", at, body)
		if err != nil {
			panic(err)
		}
		r.ContentLength = b.Size
		resp, err := one.Do(r)
		if err != nil {
			status <- err.Error()
			return
		}
		resp.Body.Close()
		status <- resp.Status
	}()
	if _, err := feed.Write(b.Body[:b.Size/2]); err != nil {
		t.Fatal(err)
	}
	for a.do("GET", at, nil).StatusCode != http.StatusConflict { // until the server is reading it
	}
	stopped := make(chan error, 1)
	go func() { stopped <- stop() }()
	feed.Write(b.Body[b.Size/2:])
	feed.Close()
	if got := <-status; got != "202 Accepted" {
		t.Errorf("an upload that was under way: %s", got)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}

func TestABrokenUploadLeavesItsSession(t *testing.T) {
	srv, _ := serve(t)
	a := api{t, srv, srv.Client()}
	b := ocitest.Plain().Layers()[1]
	at := a.want(a.do("POST", "/v2/b/blobs/uploads/", nil), 202, "").Header.Get("Location")
	// A client that promises more than it sends.
	conn, err := net.Dial("tcp", strings.TrimPrefix(srv.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(conn, "PUT %s?digest=%s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n", at, b.Digest, b.Size)
	conn.Write(b.Body[:100])
	conn.(*net.TCPConn).CloseWrite()
	io.Copy(io.Discard, conn)
	conn.Close()
	a.want(a.do("GET", "/v2/b/blobs/"+string(b.Digest), nil), 404, codeBlobUnknown)
	a.want(a.do("PUT", at+"?digest="+string(b.Digest), b.Body), 201, "")
}
