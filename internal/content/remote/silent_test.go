package remote_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/strake-project/strake/internal/content"
	"github.com/strake-project/strake/internal/content/remote"
	"github.com/strake-project/strake/internal/ocitest"
)

// silence makes handlers that read n bytes of what they are sent, and say
// nothing until the test is over: a handler's own context may never end while
// there is more to read.
type silence chan struct{}

func (s silence) after(n int64) ocitest.Fault {
	return ocitest.Answer(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.CopyN(io.Discard, r.Body, n)
		select {
		case <-s:
		case <-r.Context().Done():
		}
	})
}

// TestPushToSilent: a registry that falls silent is given up, wherever in a push
// that happens, and a push that is ended ends there at once.
func TestPushToSilent(t *testing.T) {
	const size = 16 << 20 // more than the kernel's buffers
	im := large(size)
	const uploads = "/blobs/uploads/"
	for _, c := range []struct {
		name   string
		faults func(s silence) []ocitest.Fault
	}{
		{"from the first request on", func(s silence) []ocitest.Fault { return []ocitest.Fault{s.after(0)} }},
		{"asked for blobs", func(s silence) []ocitest.Fault { return []ocitest.Fault{ocitest.On("HEAD", "/blobs/", s.after(0))} }},
		{"asked for an upload", func(s silence) []ocitest.Fault { return []ocitest.Fault{ocitest.On("POST", uploads, s.after(0))} }},
		{"in the middle of a blob", func(s silence) []ocitest.Fault {
			return []ocitest.Fault{ocitest.On("PUT", uploads, s.after(1<<20)), ocitest.On("GET", uploads, s.after(0))}
		}},
		{"after the last byte", func(s silence) []ocitest.Fault { return []ocitest.Fault{ocitest.On("PUT", uploads, s.after(size))} }},
		{"given the manifest", func(s silence) []ocitest.Fault { return []ocitest.Fault{ocitest.On("PUT", "/manifests/", s.after(0))} }},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			over := make(silence)
			f := ocitest.NewFlaky(t, c.faults(over)...)
			t.Cleanup(func() { close(over) })
			r := at(t, f.Host())
			quick := remote.New(remote.Options{Credentials: nobody, CertDirs: []string{}, Timing: remote.Timing{Attempts: 2, Backoff: time.Millisecond, Stall: 150 * time.Millisecond}})
			if err := push(t, quick, r, im); err == nil || !strings.Contains(err.Error(), "the server sends nothing") || strings.Contains(err.Error(), "\n") {
				t.Errorf("error is %v", err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(300*time.Millisecond, cancel)
			patient := remote.New(remote.Options{Credentials: nobody, CertDirs: []string{}})
			done := make(chan error, 1)
			go func() {
				_, err := content.Copy(ctx, patient.Repository(r), r, ocitest.Fill(r, im), r, content.CopyOptions{})
				done <- err
			}()
			select {
			case err := <-done:
				if !errors.Is(err, context.Canceled) {
					t.Errorf("ended: %v", err)
				}
			case <-time.After(15 * time.Second): // Stall is a minute
				t.Error("it went on after it was ended")
			}
		})
	}
}

// TestSlowPush: a registry that takes little at a time, for longer than Stall,
// is not given up. (The kernel says that there is room only when it is a third
// of its buffer, so Stall has to be longer than that takes.)
func TestSlowPush(t *testing.T) {
	t.Parallel()
	const size = 16 << 20
	im := large(size)
	slow := func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			r.Body = &dripping{ReadCloser: r.Body}
			next.ServeHTTP(w, r)
		})
	}
	f := ocitest.NewFlaky(t, ocitest.Longer(1<<20, ocitest.On("PUT", "/blobs/uploads/", slow)))
	r := at(t, f.Host())
	c := remote.New(remote.Options{Credentials: nobody, CertDirs: []string{}, Timing: remote.Timing{Attempts: 1, Stall: 1500 * time.Millisecond}})
	if err := push(t, c, r, im); err != nil {
		t.Error(err)
	}
}

// dripping gives 64 KB each 10 ms.
type dripping struct{ io.ReadCloser }

func (d *dripping) Read(p []byte) (int, error) {
	time.Sleep(10 * time.Millisecond)
	return d.ReadCloser.Read(p[:min(len(p), 64<<10)])
}

// TestSilentTokenServer: a token server that says nothing is given up as well.
func TestSilentTokenServer(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() // it accepts, by the kernel, and never reads
	f := ocitest.NewFlaky(t, ocitest.Answer(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+l.Addr().String()+`/token",service="x"`)
		w.WriteHeader(http.StatusUnauthorized)
	}))
	r := at(t, f.Host())
	c := remote.New(remote.Options{Credentials: nobody, CertDirs: []string{}, Timing: remote.Timing{Attempts: 2, Backoff: time.Millisecond, Stall: 150 * time.Millisecond}})
	if _, _, err := pull(t, c, r); err == nil || !strings.Contains(err.Error(), "the server sends nothing") || !strings.Contains(err.Error(), "/token") {
		t.Errorf("error is %v", err)
	}
}
