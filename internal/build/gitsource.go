package build

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/gitutil"

	"github.com/strake-project/strake/internal/build/git"
	"github.com/strake-project/strake/internal/build/local"
	"github.com/strake-project/strake/internal/content/store"
	"github.com/strake-project/strake/internal/oci"
)

// A git source is a commit's tree. What a ref points at is asked each time;
// the tree of a commit never changes and is a layer in the store from then on.

const bucketGit = "build.git" // commit and options → Layer

// GitCommit is what a git source comes to.
type GitCommit struct {
	git.Commit
	// Object and Tag are the commit and the annotated tag as git stores them;
	// only if they were asked for.
	Object, Tag []byte
}

// parseGit reads a source operation, without credentials.
func parseGit(op *pb.SourceOp) (*git.Source, error) {
	id := strings.TrimPrefix(op.Identifier, "git://")
	if !gitutil.IsGitTransport(id) {
		id = "https://" + id
	}
	u, err := gitutil.ParseURL(id)
	if err != nil {
		return nil, fmt.Errorf("git source: %v: %w", err, oci.ErrInvalid)
	}
	s := &git.Source{Remote: u.Remote}
	if u.Opts != nil {
		s.Ref, s.Subdir = u.Opts.Ref, u.Opts.Subdir
	}
	for k, v := range op.Attrs {
		switch k {
		case pb.AttrFullRemoteURL:
			if s.Remote, err = fullRemote(u, v); err != nil {
				return nil, err
			}
		case pb.AttrKeepGitDir:
			s.KeepGitDir = v == "true"
		case pb.AttrGitChecksum:
			s.Checksum = v
		case pb.AttrGitSkipSubmodules:
			s.SkipSubmodules = v == "true"
		case pb.AttrGitMTime:
			if v != "" && v != "checkout" && v != "commit" {
				return nil, fmt.Errorf("git mtime %q: checkout and commit are known: %w", v, oci.ErrInvalid)
			}
			s.CommitTimes = v == "commit"
		case pb.AttrGitFetchByCommit:
			s.FetchByCommit = v == "true"
		case pb.AttrKnownSSHHosts:
			s.KnownHosts = v
		case pb.AttrGitBundle, pb.AttrGitCheckoutBundle, pb.AttrGitSignatureVerifyPubKey,
			pb.AttrGitSignatureVerifyRejectExpired, pb.AttrGitSignatureVerifyRequireSignedTag, pb.AttrGitSignatureVerifyIgnoreSignedTag:
			return nil, fmt.Errorf("git source with %s: %w", k, oci.ErrUnsupported)
		}
	}
	remote, auth := git.Split(s.Remote)
	s.Remote, s.Auth, s.AuthHost = remote, auth, auth != ""
	return s, s.Check()
}

// fullRemote is the URL that says how to reach the repository that id names,
// which must be that repository.
func fullRemote(id *gitutil.GitURL, full string) (string, error) {
	if !gitutil.IsGitTransport(full) {
		full = "https://" + full
	}
	u, err := gitutil.ParseURL(full)
	if err != nil {
		return "", fmt.Errorf("git source: the URL of the repository cannot be parsed: %w", oci.ErrInvalid)
	}
	repo := func(p string) string { return strings.TrimSuffix(path.Join("/", p), ".git") }
	if !strings.EqualFold(id.Host, u.Host) || repo(id.Path) != repo(u.Path) {
		return "", fmt.Errorf("git source: its two URLs differ: %w", oci.ErrInvalid)
	}
	return u.Remote, nil
}

// gitSource reads op and adds what the client has of credentials.
func (e *Engine) gitSource(ctx context.Context, op *pb.SourceOp) (*git.Source, error) {
	s, err := parseGit(op)
	if err != nil {
		return nil, err
	}
	if id := op.Attrs[pb.AttrMountSSHSock]; id != "" {
		if s.AuthSock, err = e.gitAgent(ctx, id); err != nil {
			return nil, err
		}
	}
	u, err := url.Parse(s.Remote)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" {
		return s, nil
	}
	header, token := op.Attrs[pb.AttrAuthHeaderSecret], op.Attrs[pb.AttrAuthTokenSecret]
	for _, id := range []struct {
		name  string
		token bool
	}{{header + "." + u.Host, false}, {token + "." + u.Host, true}, {header, false}, {token, true}} {
		if id.name == "" || strings.HasPrefix(id.name, ".") {
			continue
		}
		v, ok, err := e.optionalSecret(ctx, id.name)
		if err != nil {
			return nil, err
		}
		if !ok {
			continue
		}
		if s.Auth, s.AuthHost = v, false; id.token {
			s.Auth = git.Token(v)
		}
		break
	}
	return s, nil
}

// resolved is where a ref pointed when this build first asked.
type resolved struct {
	uri    string
	once   sync.Once
	commit git.Commit
	err    error
}

// git returns git's runner and what removes its files.
func (e *Engine) git(log func(int, []byte)) (*git.Git, func()) {
	var mu sync.Mutex
	var dirs []string
	g := &git.Git{Log: log, Scratch: func(ctx context.Context) (string, error) {
		dir, err := e.opt.Store.Scratch(ctx)
		mu.Lock()
		defer mu.Unlock()
		dirs = append(dirs, dir)
		return dir, err
	}}
	return g, func() {
		for _, d := range dirs {
			os.RemoveAll(d)
		}
	}
}

func (e *Engine) resolveGit(ctx context.Context, s *git.Source, log func(int, []byte)) (git.Commit, error) {
	id := fmt.Sprint("git ", s.Remote, "#", s.Ref, " ", s.Checksum, " ", s.FetchByCommit)
	e.mu.Lock()
	r := e.commits[id]
	if r == nil {
		r = &resolved{uri: s.Remote}
		if s.Ref != "" {
			r.uri += "#" + s.Ref
		}
		e.commits[id] = r
	}
	e.mu.Unlock()
	r.once.Do(func() {
		g, clean := e.git(log)
		defer clean()
		if r.commit, r.err = g.Resolve(ctx, s); r.err != nil {
			r.err = fmt.Errorf("failed to load cache key: %w", r.err)
		}
	})
	return r.commit, r.err
}

// ResolveGit tells which commit a git source is; objects fetches it too.
func (e *Engine) ResolveGit(ctx context.Context, op *pb.SourceOp, objects bool) (*GitCommit, error) {
	s, err := e.gitSource(ctx, op)
	if err != nil {
		return nil, err
	}
	c, err := e.resolveGit(ctx, s, nil)
	if err != nil {
		return nil, err
	}
	out := &GitCommit{Commit: c}
	if objects {
		g, clean := e.git(nil)
		defer clean()
		out.Object, out.Tag, err = g.Objects(ctx, s, c)
	}
	return out, err
}

// gitTree solves a git source.
func (s *step) gitTree(ctx context.Context, op *pb.SourceOp) (*Snapshot, bool, error) {
	src, err := s.gitSource(ctx, op)
	if err != nil {
		return nil, false, err
	}
	log := func(stream int, data []byte) {
		s.Emit(Event{Log: &Log{Vertex: s.v.Digest, Stream: stream, Data: append([]byte(nil), data...), At: time.Now()}})
	}
	c, err := s.resolveGit(ctx, src, log)
	if err != nil {
		return nil, false, err
	}
	key := gitKey(src, c)
	if l, err := s.knownTree(ctx, key); err != nil || l != nil {
		if err != nil {
			return nil, false, err
		}
		return newSnapshot(s.opt.Store, []Layer{*l}, key), true, nil
	}
	g, clean := s.git(log)
	snap, err := s.checkout(ctx, g, src, c, key)
	if err != nil || snap.view == nil {
		clean()
	}
	return snap, false, err
}

// gitKey is the identity of a checkout: the commit, wherever it was fetched
// from, and what of it is there.
func gitKey(s *git.Source, c git.Commit) oci.Digest {
	id := c.Hash()
	parts := []string{"git", s.Subdir, fmt.Sprint(s.SkipSubmodules, s.CommitTimes)}
	if s.KeepGitDir && s.Subdir == "" {
		id = c.ID
		parts = append(parts, s.Remote, s.Ref, c.Ref)
	}
	return digestOf(append(parts, id)...)
}

// knownTree is the layer of an earlier build's checkout, if it is there.
func (e *Engine) knownTree(ctx context.Context, key oci.Digest) (*Layer, error) {
	r, err := e.opt.Store.GetRecord(ctx, bucketGit, string(key))
	if errors.Is(err, oci.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var l Layer
	if json.Unmarshal(r.Value, &l) != nil {
		return nil, nil
	}
	if ok, err := e.opt.Store.Has(ctx, l.Descriptor); err != nil || !ok {
		return nil, err
	}
	return &l, nil
}

// checkout makes the commit a snapshot of one layer, and remembers it. A tree
// with names that no layer can have stays a directory: most builds copy a part
// of it only.
func (s *step) checkout(ctx context.Context, g *git.Git, src *git.Source, c git.Commit, key oci.Digest) (*Snapshot, error) {
	dir, err := g.Checkout(ctx, src, c)
	if err != nil {
		return nil, err
	}
	d, err := local.Open(ctx, dir, local.Options{})
	if err != nil {
		return nil, err
	}
	snap := &Snapshot{store: s.opt.Store, view: d, key: key}
	layered, err := snap.layered(ctx, s.opt.Store, s.start)
	if errors.Is(err, oci.ErrInvalid) {
		s.opened(d)
		return snap, nil
	}
	d.Close()
	if err != nil {
		return nil, err
	}
	l := layered.Layers[0]
	l.CreatedBy = s.v.Name
	b, err := json.Marshal(l)
	if err != nil {
		return nil, err
	}
	return layered, s.opt.Store.PutRecord(ctx, store.Record{
		Bucket: bucketGit, Key: string(key), Value: b, Holds: []oci.Digest{l.DiffID},
	})
}
