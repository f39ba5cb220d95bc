package remote_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/strake-project/strake/internal/content"
	"github.com/strake-project/strake/internal/content/remote"
	"github.com/strake-project/strake/internal/content/remote/auth"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
	"github.com/strake-project/strake/internal/ocitest"
)

// debian starts Debian's docker-registry (distribution 2.8) on a loopback port
// and returns its host:port.
func debian(t testing.TB, extra string) string {
	t.Helper()
	bin, err := exec.LookPath("docker-registry")
	if err != nil {
		t.Skip("needs Debian's package docker-registry")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	dir := t.TempDir()
	conf := filepath.Join(dir, "config.yml")
	text := fmt.Sprintf(`version: 0.1
log: {level: error, accesslog: {disabled: true}}
storage:
  delete: {enabled: true}
  filesystem: {rootdirectory: %s/data}
http: {addr: %q}
%s`, dir, addr, extra)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(bin, "serve", conf)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	for range 200 {
		resp, err := http.Get("http://" + addr + "/v2/")
		if err == nil {
			resp.Body.Close()
			return addr
		}
		time.Sleep(25 * time.Millisecond)
	}
	t.Fatal("docker-registry does not answer")
	return ""
}

// nobody keeps the tests away from the user's own credentials.
func nobody(context.Context, string) (auth.Credentials, error) { return auth.Credentials{}, nil }

func mustRef(t testing.TB, s string) ref.Ref {
	t.Helper()
	r, err := ref.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestDebianRegistry carries every kind of image up to a real registry and down
// again.
func TestDebianRegistry(t *testing.T) {
	addr := debian(t, "")
	ctx := context.Background()
	c := remote.New(remote.Options{Credentials: nobody})
	images := map[string]*ocitest.Image{
		"one": ocitest.One(), "two": ocitest.Two(), "docker": ocitest.Docker(), "zstd": ocitest.Zstd(),
		"platforms": ocitest.TwoPlatforms(), "list": ocitest.DockerList(),
	}
	for name, im := range images {
		r := mustRef(t, addr+"/some/"+name+":v1")
		up, err := content.Copy(ctx, c.Repository(r), r, ocitest.Fill(r, im), r, content.CopyOptions{})
		if err != nil {
			t.Fatalf("%s up: %v", name, err)
		}
		mem := ocitest.NewMemory()
		down, err := content.Copy(ctx, mem, r, remote.New(remote.Options{Credentials: nobody}).Repository(r), r, content.CopyOptions{})
		if err != nil {
			t.Fatalf("%s down: %v", name, err)
		}
		if up.Digest != im.Target.Digest || down.Digest != im.Target.Digest || down.MediaType != im.Target.MediaType || down.Size != im.Target.Size {
			t.Errorf("%s: %v up, %v down, want %v", name, up, down, im.Target)
		}
	}
	_ = oci.ErrNotFound
}
