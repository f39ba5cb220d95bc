package git

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/strake-project/strake/internal/oci"
)

// Checkout fetches c and checks it out, and returns the directory that s
// names. It lies in a scratch directory.
func (g *Git) Checkout(ctx context.Context, s *Source, c Commit) (string, error) {
	if err := s.Check(); err != nil {
		return "", err
	}
	repo, err := g.fetch(ctx, s, c)
	if err != nil {
		return "", err
	}
	if err := repo.checkPeeled(ctx, s, c); err != nil {
		return "", err
	}
	// What a submodule's .git file says is the way from one to the other: it is
	// the same for every checkout.
	tree := filepath.Join(repo.dir, "tree")
	if err := os.Mkdir(tree, 0o755); err != nil {
		return "", err
	}
	var work *runner
	if s.KeepGitDir && s.Subdir == "" {
		work, err = repo.clone(ctx, s, c, tree)
	} else {
		work = repo.in(repo.gitDir, tree)
		_, err = work.run(ctx, "checkout", "--no-overlay", c.ID, "--", ".")
	}
	if err != nil {
		return "", fmt.Errorf("failed to checkout remote %s: %w", s.Remote, err)
	}
	if !s.SkipSubmodules {
		if err := work.submodules(ctx, tree); err != nil {
			return "", fmt.Errorf("failed to update submodules for %s: %w", s.Remote, err)
		}
	}
	dir, err := subdir(tree, s.Subdir)
	if err != nil {
		return "", err
	}
	if s.CommitTimes {
		if err := work.setTimes(ctx, dir, c); err != nil {
			return "", fmt.Errorf("failed to get commit time for %s: %w", s.Remote, err)
		}
	}
	return dir, nil
}

// checkPeeled holds the checksum against a tag that was named by its own hash.
func (r *runner) checkPeeled(ctx context.Context, s *Source, c Commit) error {
	if strings.HasPrefix(c.ID, s.Checksum) || strings.HasPrefix(c.Peeled, s.Checksum) {
		return nil
	}
	out, err := r.run(ctx, "rev-parse", "--verify", c.ID+"^{commit}")
	if err != nil {
		return err
	}
	if id := strings.TrimSpace(string(out)); !strings.HasPrefix(id, s.Checksum) {
		return mismatch(s.Checksum, c.ID+" or "+id)
	}
	return nil
}

// clone makes tree a repository of its own with c checked out, as BuildKit
// leaves it: a shallow one with a detached HEAD and the remote as origin.
func (r *runner) clone(ctx context.Context, s *Source, c Commit, tree string) (*runner, error) {
	gitDir := filepath.Join(tree, ".git")
	own := r.local().in(gitDir, tree)
	init := []string{"-c", "init.defaultBranch=master", "init"}
	if len(c.ID) == 64 {
		init = append(init, "--object-format=sha256")
	}
	refspec, err := r.cloneRefspec(ctx, s, c)
	if err != nil {
		return nil, err
	}
	for _, args := range [][]string{
		init,
		// By the file protocol, which copies objects and nothing else.
		{"remote", "add", "--", "origin", "file://" + r.gitDir},
		{"fetch", "-u", "--depth=1", "--", "origin", refspec},
		{"checkout", "FETCH_HEAD"},
		{"remote", "set-url", "--", "origin", s.Remote},
		{"reflog", "expire", "--all", "--expire=now"},
	} {
		if _, err := own.run(ctx, args...); err != nil {
			return nil, err
		}
	}
	if err := os.Remove(filepath.Join(gitDir, "FETCH_HEAD")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return r.in(gitDir, tree), nil
}

func (r *runner) cloneRefspec(ctx context.Context, s *Source, c Commit) (string, error) {
	name := refName(s, c)
	kind, err := r.run(ctx, "cat-file", "-t", c.ID)
	if err != nil {
		return "", err
	}
	switch {
	case c.Ref == c.ID || s.FetchByCommit:
		// Only what a ref points at can be fetched.
		if _, err := r.run(ctx, "update-ref", "refs/strake/commit", c.ID); err != nil {
			return "", err
		}
		if c.Ref != c.ID {
			return "refs/strake/commit:" + c.Ref, nil
		}
		return "refs/strake/commit", nil
	case strings.TrimSpace(string(kind)) == "tag":
		return localRef(s, c) + ":" + localRef(s, c), nil
	case strings.HasPrefix(name, "refs/"):
		return localRef(s, c) + ":" + name, nil
	}
	return localRef(s, c) + ":" + localRef(s, c), nil
}

// submodules fetches what the commit has of other repositories. Most have none
// and are spared a shell script.
func (r *runner) submodules(ctx context.Context, tree string) error {
	if _, err := os.Lstat(filepath.Join(tree, ".gitmodules")); err != nil {
		return nil
	}
	_, err := r.run(ctx, "submodule", "update", "--init", "--recursive", "--depth=1")
	return err
}

// subdir is the directory sub of tree. No component of it is a symlink: where
// one leads is the repository's choice.
func subdir(tree, sub string) (string, error) {
	root, err := os.OpenRoot(tree)
	if err != nil {
		return "", err
	}
	defer root.Close()
	at := "."
	for _, part := range clean(sub) {
		at = path.Join(at, part)
		st, err := root.Lstat(at)
		if errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("invalid subdir %s: the repository has no %q: %w", sub, at, oci.ErrNotFound)
		}
		if err != nil {
			return "", fmt.Errorf("invalid subdir %s: %w", sub, err)
		}
		if !st.IsDir() {
			return "", fmt.Errorf("invalid subdir %s: %q is no directory: %w", sub, at, oci.ErrInvalid)
		}
	}
	return filepath.Join(tree, filepath.FromSlash(at)), nil
}

// setTimes gives everything below dir the commit's time.
func (r *runner) setTimes(ctx context.Context, dir string, c Commit) error {
	out, err := r.run(ctx, "log", "-1", "--format=%ct", c.ID+"^{commit}")
	if err != nil {
		return err
	}
	sec, err := strconv.ParseInt(strings.TrimSpace(string(out)), 10, 64)
	if err != nil {
		return fmt.Errorf("commit time %q: %w", out, oci.ErrInvalid)
	}
	t, err := unix.TimeToTimespec(time.Unix(sec, 0))
	if err != nil {
		return err
	}
	return filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return unix.UtimesNanoAt(unix.AT_FDCWD, p, []unix.Timespec{t, t}, unix.AT_SYMLINK_NOFOLLOW)
	})
}
