// Package git fetches what a git source names: it resolves a ref to a commit,
// and checks the commit out into a directory. The git program does the work.
//
// Invariants: neither the user's nor the machine's git configuration, nor
// hooks, nor a prompt have a part in it; a repository reaches nothing but
// servers (http, https, ssh, git), submodules included, never the disk; a ref
// or a URL is never taken for an option; credentials are in no argument list,
// in no error and in no checkout; what is checked out is the commit that was
// resolved.
package git

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/moby/buildkit/util/gitutil"

	"github.com/strake-project/strake/internal/oci"
)

// Source is a tree in a repository.
type Source struct {
	// Remote is the repository's URL, "https://host/path" or "user@host:path",
	// without credentials (see Split).
	Remote string
	// Ref is a branch, a tag, a full ref or a commit; empty is the default branch.
	Ref string
	// Subdir is the directory in the repository to use; empty is all of it.
	Subdir string
	// Checksum is what the commit's, or the tag's, hash begins with, if set.
	Checksum string
	// KeepGitDir keeps .git; without effect where Subdir is set, as in BuildKit.
	KeepGitDir     bool
	SkipSubmodules bool
	// CommitTimes gives the files the commit's time instead of the checkout's.
	CommitTimes bool
	// FetchByCommit trusts Checksum, a whole hash, and does not ask where Ref is.
	FetchByCommit bool

	// Auth is the Authorization header for Remote's server.
	Auth string
	// AuthHost sends Auth to all of the host, as for credentials in the URL,
	// which submodules with relative URLs inherit.
	AuthHost bool
	// KnownHosts is what ssh knows; without, it believes every host.
	KnownHosts string
	// AuthSock is the socket of an ssh agent.
	AuthSock string
}

// Commit is what a ref pointed at.
type Commit struct {
	// Ref is the whole name of the ref, or the commit where it was named so.
	Ref string
	// ID is the hash of the commit, or of the annotated tag that points at it.
	ID string
	// Peeled is the commit's hash where ID is an annotated tag's.
	Peeled string
}

// Hash is the commit's own hash as far as it is known, else the tag's.
func (c Commit) Hash() string {
	if c.Peeled != "" {
		return c.Peeled
	}
	return c.ID
}

// Split takes the credentials out of a repository's URL: the URL without them,
// and the Authorization header that they make. An ssh user stays: it is no
// secret.
func Split(remote string) (string, string) {
	u, err := url.Parse(remote)
	if err != nil || u.User == nil || u.Host == "" {
		return remote, ""
	}
	auth := ""
	switch strings.ToLower(u.Scheme) {
	case "http", "https":
		pass, _ := u.User.Password()
		auth = basic(u.User.Username(), pass)
		u.User = nil
	default:
		u.User = url.User(u.User.Username())
	}
	return u.String(), auth
}

var hexPattern = regexp.MustCompile(`^[a-fA-F0-9]+$`)

// Check fails with oci.ErrInvalid for what no repository has.
func (s *Source) Check() error {
	if s.Ref != "" && !validRef(s.Ref) {
		return fmt.Errorf("invalid git ref %q: %w", s.Ref, oci.ErrInvalid)
	}
	if s.Checksum != "" && !hexPattern.MatchString(s.Checksum) {
		return fmt.Errorf("invalid checksum %s for Git URL, expected hex commit hash: %w", s.Checksum, oci.ErrInvalid)
	}
	u, err := gitutil.ParseURL(s.Remote)
	if err != nil {
		return fmt.Errorf("git repository %q: %v: %w", s.Remote, err, oci.ErrInvalid)
	}
	if strings.HasPrefix(s.Remote, "-") || strings.HasPrefix(u.Host, "-") || u.Host == "" || strings.ContainsAny(s.Remote, "\n\r\x00") {
		return fmt.Errorf("git repository %q: not a URL: %w", s.Remote, oci.ErrInvalid)
	}
	if s.FetchByCommit && !gitutil.IsCommitSHA(s.Ref) && !gitutil.IsCommitSHA(s.Checksum) {
		return fmt.Errorf("fetch-by-commit requires a full commit SHA checksum, got %q: %w", s.Checksum, oci.ErrInvalid)
	}
	return nil
}

// validRef follows git's own rules (git-check-ref-format), and keeps options out.
func validRef(ref string) bool {
	if strings.HasPrefix(ref, "-") || strings.HasPrefix(ref, "/") || strings.HasPrefix(ref, "+") ||
		strings.HasSuffix(ref, "/") || strings.HasSuffix(ref, ".") || ref == "@" ||
		strings.Contains(ref, "..") || strings.Contains(ref, "@{") || strings.Contains(ref, "//") {
		return false
	}
	for _, r := range ref {
		if r <= ' ' || r == 0x7f || strings.ContainsRune(`~^:?*[\`, r) {
			return false
		}
	}
	for _, part := range strings.Split(ref, "/") {
		if strings.HasPrefix(part, ".") || strings.HasSuffix(part, ".lock") {
			return false
		}
	}
	return true
}

// Git runs git in scratch directories.
type Git struct {
	// Scratch makes an empty directory of its own, which the caller of Git
	// removes some day.
	Scratch func(context.Context) (string, error)
	// Log receives what git prints, if set; from several goroutines.
	Log func(stream int, data []byte)
	// Stall is how long a command may do nothing but wait; 0 is two minutes.
	Stall time.Duration
}

func (g *Git) stall() time.Duration {
	if g.Stall > 0 {
		return g.Stall
	}
	return 2 * time.Minute
}

// Resolve finds the commit that s names, without fetching it.
func (g *Git) Resolve(ctx context.Context, s *Source) (Commit, error) {
	if err := s.Check(); err != nil {
		return Commit{}, err
	}
	if gitutil.IsCommitSHA(s.Ref) {
		if !strings.HasPrefix(s.Ref, s.Checksum) {
			return Commit{}, mismatch(s.Checksum, s.Ref)
		}
		return Commit{Ref: s.Ref, ID: s.Ref}, nil
	}
	if s.FetchByCommit {
		c := Commit{Ref: s.Ref, ID: s.Checksum}
		if c.Ref == "" {
			c.Ref = s.Checksum
		} else if !strings.HasPrefix(c.Ref, "refs/") {
			c.Ref = "refs/heads/" + c.Ref
		}
		return c, nil
	}
	c, err := g.lsRemote(ctx, s)
	if err != nil {
		return Commit{}, err
	}
	if !strings.HasPrefix(c.ID, s.Checksum) && !strings.HasPrefix(c.Peeled, s.Checksum) {
		got := c.ID
		if c.Peeled != "" {
			got += " or " + c.Peeled
		}
		return Commit{}, mismatch(s.Checksum, got)
	}
	return c, nil
}

func mismatch(want, got string) error {
	return fmt.Errorf("expected checksum to match %s, got %s: %w", want, got, oci.ErrCorrupt)
}

// lsRemote asks the server where s.Ref, or its default branch, points.
func (g *Git) lsRemote(ctx context.Context, s *Source) (Commit, error) {
	r, err := g.runner(ctx, s)
	if err != nil {
		return Commit{}, err
	}
	if s.Ref == "" {
		out, err := r.run(ctx, "ls-remote", "--symref", "--", s.Remote, "HEAD")
		if err != nil {
			return Commit{}, fmt.Errorf("error fetching default branch for repository %s: %w", s.Remote, err)
		}
		branch, refs := parseRefs(out)
		id := refs["HEAD"]
		if !strings.HasPrefix(branch, "refs/heads/") || !validRef(branch) || !gitutil.IsCommitSHA(id) {
			return Commit{}, fmt.Errorf("could not find default branch for repository: %s: %w", s.Remote, oci.ErrNotFound)
		}
		return Commit{Ref: branch, ID: id}, nil
	}
	out, err := r.run(ctx, "ls-remote", "--", s.Remote, s.Ref, s.Ref+"^{}")
	if err != nil {
		return Commit{}, fmt.Errorf("failed to fetch remote %s: %w", s.Remote, err)
	}
	_, refs := parseRefs(out)
	// The order is git-checkout's: a whole name, a branch, a tag.
	for _, name := range []string{
		"refs/" + strings.TrimPrefix(s.Ref, "refs/"),
		"refs/heads/" + strings.TrimPrefix(s.Ref, "refs/heads/"),
		"refs/tags/" + strings.TrimPrefix(s.Ref, "refs/tags/"),
	} {
		if id := refs[name]; id != "" {
			c := Commit{Ref: name, ID: id, Peeled: refs[name+"^{}"]}
			if !gitutil.IsCommitSHA(id) || c.Peeled != "" && !gitutil.IsCommitSHA(c.Peeled) {
				return Commit{}, fmt.Errorf("%s: %s is at %q, which is no commit: %w", s.Remote, name, id, oci.ErrInvalid)
			}
			return c, nil
		}
	}
	return Commit{}, fmt.Errorf("repository does not contain ref %s: %s: %w", s.Ref, s.Remote, oci.ErrNotFound)
}

// parseRefs reads git-ls-remote's lines: where HEAD points, and hashes by ref.
func parseRefs(out []byte) (head string, refs map[string]string) {
	refs = map[string]string{}
	for line := range strings.Lines(string(out)) {
		value, name, ok := strings.Cut(strings.TrimRight(line, "\n"), "\t")
		if !ok {
			continue
		}
		if target, ok := strings.CutPrefix(value, "ref: "); ok {
			if name == "HEAD" {
				head = target
			}
			continue
		}
		refs[name] = value
	}
	return head, refs
}

// Objects returns the commit that c is, and the annotated tag that points at
// it, as git stores them.
func (g *Git) Objects(ctx context.Context, s *Source, c Commit) (commit, tag []byte, err error) {
	repo, err := g.fetch(ctx, s, c)
	if err != nil {
		return nil, nil, err
	}
	kind, err := repo.run(ctx, "cat-file", "-t", c.ID)
	if err != nil {
		return nil, nil, err
	}
	if strings.TrimSpace(string(kind)) == "tag" {
		if tag, err = repo.run(ctx, "cat-file", "tag", c.ID); err != nil {
			return nil, nil, err
		}
	}
	id, err := repo.run(ctx, "rev-parse", "--verify", c.ID+"^{commit}")
	if err != nil {
		return nil, nil, err
	}
	commit, err = repo.run(ctx, "cat-file", "commit", strings.TrimSpace(string(id)))
	return commit, tag, err
}

// fetch gets the commit, and as little else as the server allows, into a bare
// repository of its own.
func (g *Git) fetch(ctx context.Context, s *Source, c Commit) (*runner, error) {
	r, err := g.runner(ctx, s)
	if err != nil {
		return nil, err
	}
	repo := r.in(path.Join(r.dir, "repo"), "")
	args := []string{"-c", "init.defaultBranch=master", "init", "--bare", "--template="}
	if len(c.ID) == 64 {
		args = append(args, "--object-format=sha256")
	}
	if _, err := repo.run(ctx, args...); err != nil {
		return nil, err
	}
	if _, err := repo.run(ctx, "remote", "add", "--", "origin", s.Remote); err != nil {
		return nil, err
	}
	failed := func(err error) error { return fmt.Errorf("failed to fetch remote %s: %w", s.Remote, err) }
	if c.Ref == c.ID || s.FetchByCommit {
		return repo, repo.fetchCommit(ctx, c.ID, failed)
	}
	if err := repo.fetchShallow(ctx, c.Ref+":"+localRef(s, c)); err != nil {
		return nil, failed(err)
	}
	now, err := repo.run(ctx, "rev-parse", "--verify", localRef(s, c))
	if err != nil {
		return nil, err
	}
	if strings.TrimSpace(string(now)) != c.ID { // it moved after it was resolved
		if err := repo.fetchCommit(ctx, c.ID, failed); err != nil {
			return nil, err
		}
		if _, err := repo.run(ctx, "update-ref", "--no-deref", localRef(s, c), c.ID); err != nil {
			return nil, err
		}
	}
	return repo, nil
}

// localRef is where the bare repository keeps what s names; it is BuildKit's
// choice, which shows in a .git that is kept.
func localRef(s *Source, c Commit) string {
	name := refName(s, c)
	if strings.HasPrefix(name, "refs/tags/") {
		return name
	}
	return "refs/tags/" + name
}

// refName is s.Ref, or the default branch's short name.
func refName(s *Source, c Commit) string {
	if s.Ref != "" {
		return s.Ref
	}
	return strings.TrimPrefix(c.Ref, "refs/heads/")
}

// fetchShallow fetches one ref or commit without its history. Servers of the
// dumb protocol cannot leave that out.
func (r *runner) fetchShallow(ctx context.Context, refspec string) error {
	_, err := r.run(ctx, "fetch", "--depth=1", "--no-tags", "--force", "--", "origin", refspec)
	var ge *Error
	if errors.As(err, &ge) && (strings.Contains(ge.Stderr, "shallow") || strings.Contains(ge.Stderr, "--depth")) {
		_, err = r.run(ctx, "fetch", "--no-tags", "--force", "--", "origin", refspec)
	}
	return err
}

// fetchCommit fetches a commit by its hash. Not every server gives one that no
// ref points at: then all refs are fetched, and it must be among what they reach.
func (r *runner) fetchCommit(ctx context.Context, id string, failed func(error) error) error {
	err := r.fetchShallow(ctx, id)
	if err != nil {
		if ctx.Err() != nil {
			return failed(err)
		}
		if _, err2 := r.run(ctx, "fetch", "--tags", "--force", "--", "origin", "+refs/*:refs/remote/*"); err2 != nil {
			return failed(err)
		}
	}
	if _, err2 := r.run(ctx, "cat-file", "-e", id+"^{commit}"); err2 != nil {
		if err == nil {
			err = err2
		}
		return failed(fmt.Errorf("commit %s is not there: %w", id, err))
	}
	return nil
}

// basic is the Authorization header of a user and a password.
func basic(user, password string) string { return "Basic " + base64Of(user+":"+password) }

// Token is the header that git servers take a token in.
func Token(token string) string { return "basic " + base64Of("x-access-token:"+token) }

// clean is a subdirectory of a repository, relative and inside of it.
func clean(subdir string) []string {
	parts := strings.Split(strings.TrimPrefix(path.Join("/", subdir), "/"), "/")
	return slices.DeleteFunc(parts, func(s string) bool { return s == "" })
}
