package store_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/strake-project/strake/internal/content"
	"github.com/strake-project/strake/internal/content/store"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/ocitest"
)

// TestMain lets the test binary be a process of its own that works on a store.
func TestMain(m *testing.M) {
	if root := os.Getenv("STRAKE_TEST_WORK"); root != "" {
		seed, _ := strconv.ParseUint(os.Getenv("STRAKE_TEST_SEED"), 10, 64)
		steps, _ := strconv.Atoi(os.Getenv("STRAKE_TEST_STEPS"))
		if err := work(root, seed, steps); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// work does random commands; after each tag it says so, as a command that ends
// with exit code 0 would.
func work(root string, seed uint64, steps int) error {
	s, err := store.Open(root, store.Options{})
	if err != nil {
		return err
	}
	defer s.Close()
	r := rand.New(rand.NewPCG(seed, seed))
	for i := range steps {
		if err := step(s, r, fmt.Sprintf("p%d:t%d", seed%16, r.IntN(4)), i); err != nil {
			return fmt.Errorf("step %d: %w", i, err)
		}
		if err := buildStep(s, r, fmt.Sprintf("built%d:%d", seed%16, i%3)); err != nil {
			return fmt.Errorf("build %d: %w", i, err)
		}
		fmt.Println("done", i)
	}
	return nil
}

// buildStep leaves what a RUN and a COPY leave, a record and a tag.
func buildStep(s *store.Store, r *rand.Rand, tag string) error {
	ctx, release, err := s.Lease(context.Background())
	if err != nil {
		return err
	}
	defer release()
	dir, err := s.Scratch(ctx)
	if err != nil {
		return err
	}
	dir = filepath.Join(dir, "upper")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte(fmt.Sprint(r.IntN(10))), 0o644); err != nil {
		return err
	}
	if err := os.Chtimes(file, epoch, epoch); err != nil {
		return err
	}
	toc, err := s.TakeTree(ctx, dir)
	if err != nil {
		return err
	}
	return commitImage(ctx, s, tag, toc.DiffID, toc.Size)
}

func commitImage(ctx context.Context, s *store.Store, tag string, diffID oci.Digest, size int64) error {
	cfg := []byte(`{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":["` + string(diffID) + `"]}}`)
	cd := oci.DescriptorOf(oci.MediaTypeConfig, cfg)
	mani := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":%q,"digest":%q,"size":%d},"layers":[{"mediaType":%q,"digest":%q,"size":%d}]}`,
		oci.MediaTypeManifest, cd.MediaType, cd.Digest, cd.Size, oci.MediaTypeLayer, diffID, size)
	md := oci.DescriptorOf(oci.MediaTypeManifest, mani)
	if err := s.Put(ctx, cd, strings.NewReader(string(cfg))); err != nil {
		return err
	}
	if err := s.Put(ctx, md, strings.NewReader(string(mani))); err != nil {
		return err
	}
	if err := s.PutRecord(ctx, store.Record{Bucket: "cache", Key: string(diffID), Holds: []oci.Digest{diffID}}); err != nil {
		return err
	}
	to, err := refOf(tag)
	if err != nil {
		return err
	}
	return s.Tag(ctx, to, md)
}

func worker(root string, seed uint64, steps int) *exec.Cmd {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "STRAKE_TEST_WORK="+root, fmt.Sprintf("STRAKE_TEST_SEED=%d", seed), fmt.Sprintf("STRAKE_TEST_STEPS=%d", steps))
	return cmd
}

func TestProcessesAtOnce(t *testing.T) {
	root := t.TempDir() // no store yet: they make it at the same moment, too
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			seed := rand.Uint64()&^15 | uint64(i) // the names of two are never the same
			if out, err := worker(root, seed, 12).CombinedOutput(); err != nil {
				t.Errorf("process %d: %v\n%s", i, err, out)
			}
		})
	}
	wg.Wait()
	s := open(t, root)
	sound(t, s)
	wholeImages(t, s)
}

// wholeImages reads every image that has a name to the last byte.
func wholeImages(t *testing.T, s *store.Store) {
	t.Helper()
	for _, im := range images(t, s) {
		for _, n := range im.Names {
			sink := ocitest.NewSparse()
			if _, err := content.Copy(t.Context(), sink, n, s, n, content.CopyOptions{}); err != nil {
				t.Errorf("%s does not copy out: %v", n, err)
			}
		}
	}
}

// A process is killed at a random moment, sixty times, while another one works;
// what was there before is there after, the store is sound, and nothing that
// the dead one held or had under way is in the way of the next.
func TestKill(t *testing.T) {
	root := t.TempDir()
	s := open(t, root)
	keep := ocitest.TwoPlatforms()
	put(t, t.Context(), s, keep, "keep")
	for i := range 60 {
		victim := worker(root, rand.Uint64(), 1000)
		if err := victim.Start(); err != nil {
			t.Fatal(err)
		}
		var other *exec.Cmd
		if i%10 == 0 {
			other = worker(root, rand.Uint64(), 3)
			if err := other.Start(); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Duration(rand.IntN(120)) * time.Millisecond)
		if err := victim.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		victim.Wait()
		if other != nil {
			if err := other.Wait(); err != nil {
				t.Errorf("round %d: the process beside it: %v", i, err)
			}
		}
		problems, err := s.Examine(t.Context(), true, nil)
		if err != nil || len(problems) > 0 {
			t.Fatalf("round %d: %v %v", i, problems, err)
		}
	}
	if !hasAll(t, s, keep) {
		t.Error("an image from before is not whole")
	}
	wholeImages(t, s)
	collect(t, s)
	for _, dir := range []string{"leases", "work", "partial"} {
		left, err := os.ReadDir(filepath.Join(root, dir))
		if dir == "partial" { // unfinished downloads stay, to be resumed
			left = slices.DeleteFunc(left, func(e os.DirEntry) bool { return !strings.HasPrefix(e.Name(), "put-") })
		}
		if err != nil || len(left) > 0 {
			t.Errorf("%s: %v left, %v", dir, left, err)
		}
	}
	sound(t, s)
	wholeImages(t, s)
	if out, err := worker(root, 7, 3).CombinedOutput(); err != nil {
		t.Errorf("the next process: %v\n%s", err, out)
	}
}
