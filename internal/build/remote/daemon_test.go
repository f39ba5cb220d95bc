package remote_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	cdcontent "github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	control "github.com/moby/buildkit/api/services/control"
	apitypes "github.com/moby/buildkit/api/types"
	"github.com/moby/buildkit/client/buildid"
	gwpb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/auth"
	sessioncontent "github.com/moby/buildkit/session/content"
	"github.com/moby/buildkit/session/filesync"
	"github.com/moby/buildkit/session/grpchijack"
	"github.com/moby/buildkit/session/secrets"
	solvererr "github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/grpcerrors"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/strake-project/strake/internal/oci"
)

// daemon speaks BuildKit's protocol as far as a client can tell: the session,
// the gateway, the progress and the exporter are the real ones. A "build" makes
// an image whose one layer is the context.
type daemon struct {
	control.UnimplementedControlServer
	t        *testing.T
	sessions *session.Manager

	mu   sync.Mutex
	jobs map[string]*job

	sent    []digest.Digest // what exports had to send
	asked   map[string]string
	secret  string
	user    string
	entitle []string
}

type job struct {
	session  chan string // of the Solve
	returned chan *gwpb.ReturnRequest
	status   chan *control.StatusResponse
	files    map[string]string
}

func startDaemon(t *testing.T, tlsConfig *tls.Config) (*daemon, string) {
	sm, err := session.NewManager()
	if err != nil {
		t.Fatal(err)
	}
	d := &daemon{t: t, sessions: sm, jobs: map[string]*job{}, asked: map[string]string{}}
	opts := []grpc.ServerOption{
		grpc.UnaryInterceptor(grpcerrors.UnaryServerInterceptor), grpc.StreamInterceptor(grpcerrors.StreamServerInterceptor),
	}
	network, address, url := "unix", filepath.Join(t.TempDir(), "bk.sock"), ""
	url = "unix://" + address
	if tlsConfig != nil {
		network, address = "tcp", "127.0.0.1:0"
		opts = append(opts, grpc.Creds(credentials.NewTLS(tlsConfig)))
	}
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	if tlsConfig != nil {
		url = "tcp://" + l.Addr().String()
	}
	s := grpc.NewServer(opts...)
	control.RegisterControlServer(s, d)
	gwpb.RegisterLLBBridgeServer(s, gateway{d: d})
	go s.Serve(l)
	t.Cleanup(s.Stop)
	return d, url
}

func (d *daemon) job(id string) *job {
	d.mu.Lock()
	defer d.mu.Unlock()
	j := d.jobs[id]
	if j == nil {
		j = &job{session: make(chan string, 1), returned: make(chan *gwpb.ReturnRequest, 1), status: make(chan *control.StatusResponse, 16)}
		d.jobs[id] = j
	}
	return j
}

func (d *daemon) ListWorkers(context.Context, *control.ListWorkersRequest) (*control.ListWorkersResponse, error) {
	return &control.ListWorkersResponse{Record: []*apitypes.WorkerRecord{{ID: "w"}}}, nil
}

func (d *daemon) Session(stream control.Control_SessionServer) error {
	conn, closed, opts := grpchijack.Hijack(stream)
	defer conn.Close()
	ctx, cancel := context.WithCancel(stream.Context())
	go func() { <-closed; cancel() }()
	return d.sessions.HandleConn(ctx, conn, opts)
}

func (d *daemon) Status(req *control.StatusRequest, stream control.Control_StatusServer) error {
	for s := range d.job(req.Ref).status {
		if err := stream.Send(s); err != nil {
			return err
		}
	}
	return nil
}

// gateway is the daemon's other service, which a frontend asks.
type gateway struct {
	gwpb.UnimplementedLLBBridgeServer
	d *daemon
}

func (g gateway) Solve(ctx context.Context, req *gwpb.SolveRequest) (*gwpb.SolveResponse, error) {
	return g.d.build(ctx, req)
}

func (gateway) Ping(context.Context, *gwpb.PingRequest) (*gwpb.PongResponse, error) {
	return &gwpb.PongResponse{FrontendAPICaps: gwpb.Caps.All(), LLBCaps: pb.Caps.All()}, nil
}

func (g gateway) Return(ctx context.Context, req *gwpb.ReturnRequest) (*gwpb.ReturnResponse, error) {
	g.d.job(buildid.FromIncomingContext(ctx)).returned <- req
	return &gwpb.ReturnResponse{}, nil
}

func (d *daemon) caller(ctx context.Context, j *job) (session.Caller, error) {
	id := <-j.session
	j.session <- id
	return d.sessions.Get(ctx, id, false)
}

// build is what the frontend does: it reads the Dockerfile and the context.
func (d *daemon) build(ctx context.Context, req *gwpb.SolveRequest) (*gwpb.SolveResponse, error) {
	j := d.job(buildid.FromIncomingContext(ctx))
	if req.FrontendOpt["requestid"] != "" {
		return &gwpb.SolveResponse{Result: &gwpb.Result{
			Result:   &gwpb.Result_Ref{Ref: &gwpb.Ref{}},
			Metadata: map[string][]byte{"result.txt": []byte("TARGET\n")},
		}}, nil
	}
	c, err := d.caller(ctx, j)
	if err != nil {
		return nil, err
	}
	j.files = map[string]string{}
	dir := d.t.TempDir()
	for _, name := range []string{"dockerfile", "context"} {
		to := filepath.Join(dir, name)
		if err := os.Mkdir(to, 0o755); err != nil {
			return nil, err
		}
		opt := filesync.FSSendRequestOpt{Name: name, DestDir: to}
		if name == "context" {
			opt.ExcludePatterns = []string{"ignored"}
		}
		if err := filesync.FSSync(ctx, c, opt); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	err = filepath.WalkDir(filepath.Join(dir, "context"), func(p string, e os.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			b, _ := os.ReadFile(p)
			rel, _ := filepath.Rel(filepath.Join(dir, "context"), p)
			j.files[rel] = string(b)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	body, err := os.ReadFile(filepath.Join(dir, "dockerfile", req.FrontendOpt["filename"]))
	if err != nil {
		return nil, err
	}
	for k, v := range req.FrontendOpt {
		d.asked[k] = v
	}
	if s, err := secrets.GetSecret(ctx, c, "s"); err == nil {
		d.secret = string(s)
	}
	if _, user, pass, err := auth.CredentialsFunc(ctx, d.sessions, session.NewGroup(<-j.session))("registry.example"); err == nil {
		d.user = user + ":" + pass
	}
	d.report(j)
	if bytes.Contains(body, []byte("RUN false")) {
		return nil, solvererr.WithSource(errors.New("process \"false\" did not complete successfully: exit code: 1"), &solvererr.Source{
			Info:   &pb.SourceInfo{Filename: "Dockerfile", Data: body},
			Ranges: []*pb.Range{{Start: &pb.Position{Line: 2}, End: &pb.Position{Line: 2}}},
		})
	}
	return &gwpb.SolveResponse{Result: &gwpb.Result{Result: &gwpb.Result_Ref{Ref: &gwpb.Ref{Id: "image"}}}}, nil
}

// report sends progress as buildkitd does: a step ends, begins anew, and ends
// in the same breath as it says its last.
func (d *daemon) report(j *job) {
	now := timestamppb.New(time.Now())
	v := func(started, completed *timestamppb.Timestamp) *control.Vertex {
		return &control.Vertex{Digest: digest.FromString("v").String(), Name: "[1/1] COPY . /", Started: started, Completed: completed}
	}
	j.status <- &control.StatusResponse{Vertexes: []*control.Vertex{v(now, now), v(now, nil)}}
	j.status <- &control.StatusResponse{
		Vertexes: []*control.Vertex{v(now, now)},
		Logs:     []*control.VertexLog{{Vertex: digest.FromString("v").String(), Stream: 1, Msg: []byte("copied\n"), Timestamp: now}},
	}
}

// Solve runs one build from its session to its export.
func (d *daemon) Solve(ctx context.Context, req *control.SolveRequest) (*control.SolveResponse, error) {
	j := d.job(req.Ref)
	defer close(j.status)
	d.entitle = req.Entitlements
	j.session <- req.Session
	var r *gwpb.ReturnRequest
	select {
	case r = <-j.returned:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if r.Error != nil {
		return nil, grpcerrors.FromGRPC(status.ErrorProto(r.Error))
	}
	out := map[string]string{}
	for _, e := range req.Exporters {
		if e.Type != "oci" || e.Attrs["tar"] != "false" {
			return nil, fmt.Errorf("exporter %s %v", e.Type, e.Attrs)
		}
		c, err := d.sessions.Get(ctx, req.Session, false)
		if err != nil {
			return nil, err
		}
		if err := d.export(ctx, sessioncontent.NewCallerStore(c, "export"), j, out); err != nil {
			return nil, err
		}
	}
	return &control.SolveResponse{ExporterResponse: out}, nil
}

func (d *daemon) export(ctx context.Context, to cdcontent.Store, j *job, out map[string]string) error {
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	for _, name := range []string{"a", "big"} {
		if body, ok := j.files[name]; ok {
			w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(body)), ModTime: time.Unix(1, 0), Format: tar.FormatUSTAR})
			io.WriteString(w, body)
		}
	}
	w.Close()
	img := oci.Image{}
	img.OS, img.Architecture, img.RootFS.Type = "linux", "amd64", "layers"
	img.RootFS.DiffIDs = []oci.Digest{digest.FromBytes(layer.Bytes())}
	config, _ := json.Marshal(img)
	m := oci.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: oci.MediaTypeManifest,
		Config: oci.DescriptorOf(oci.MediaTypeConfig, config),
		Layers: []oci.Descriptor{oci.DescriptorOf(oci.MediaTypeLayer, layer.Bytes())},
	}
	manifest, _ := json.Marshal(m)
	target := oci.DescriptorOf(oci.MediaTypeManifest, manifest)
	for _, b := range []struct {
		oci.Descriptor
		body []byte
	}{{m.Layers[0], layer.Bytes()}, {m.Config, config}, {target, manifest}} {
		w, err := to.Writer(ctx, cdcontent.WithRef(b.Digest.String()), cdcontent.WithDescriptor(b.Descriptor))
		if errdefs.IsAlreadyExists(err) {
			continue
		}
		if err != nil {
			return err
		}
		d.sent = append(d.sent, b.Digest)
		if d.asked["build-arg:CORRUPT"] != "" {
			b.body = append([]byte("x"), b.body[1:]...)
		}
		for part := range slices.Chunk(b.body, 1<<20) {
			if _, err := w.Write(part); err != nil {
				return err
			}
		}
		if err := w.Commit(ctx, b.Size, b.Digest); err != nil {
			return err
		}
	}
	desc, _ := json.Marshal(target)
	out["containerimage.descriptor"] = base64.StdEncoding.EncodeToString(desc)
	out["containerimage.config.digest"] = m.Config.Digest.String()
	return nil
}
