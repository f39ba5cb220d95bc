package build

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	slsa "github.com/in-toto/in-toto-golang/in_toto/slsa_provenance/common"
	slsa1 "github.com/in-toto/in-toto-golang/in_toto/slsa_provenance/v1"
	"github.com/moby/buildkit/solver/llbsolver/provenance/types"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/urlutil"

	"github.com/strake-project/strake/internal/content"
	"github.com/strake-project/strake/internal/oci"
)

// Provenance says what a provenance attestation tells.
type Provenance struct {
	// Max adds the build's arguments, its graph and its sources to the
	// materials that it was made of.
	Max bool
	// Version of SLSA's predicate: "v1" or "v0.2".
	Version      string
	BuilderID    string
	Reproducible bool
	// Options are the frontend's; Dockerfile is its version.
	Options    map[string]string
	Dockerfile string
	Locals     []string
}

const (
	predicateSLSA1  = "https://slsa.dev/provenance/v1"
	predicateSLSA02 = "https://slsa.dev/provenance/v0.2"
)

// provenance is the predicate about img, in BuildKit's form, and its type.
// Under SOURCE_DATE_EPOCH it says nothing that differs from build to build.
func (e *Engine) provenance(img Image, p *Provenance) (kind string, predicate any) {
	started, finished := e.start.UTC(), time.Now().UTC()
	invocation := digestOf("invocation", fmt.Sprint(e.start.UnixNano())).Encoded()[:25]
	if img.Epoch != nil {
		started, finished, invocation = *img.Epoch, *img.Epoch, ""
	}
	nodes := graph(img.Edge)
	request := types.Parameters{Frontend: "dockerfile.v0", Args: p.args()}
	for _, name := range slices.Sorted(slices.Values(p.Locals)) {
		request.Locals = append(request.Locals, &types.LocalSource{Name: name})
	}
	secrets(&request, nodes)
	pred := &types.ProvenancePredicateSLSA1{
		BuildDefinition: types.ProvenanceBuildDefinitionSLSA1{
			ProvenanceBuildDefinition: slsa1.ProvenanceBuildDefinition{
				BuildType: types.BuildKitBuildType1, ResolvedDependencies: e.materials(nodes),
			},
			ExternalParameters: types.ProvenanceExternalParametersSLSA1{ConfigSource: e.configSource(p, nodes), Request: request},
			InternalParameters: types.ProvenanceInternalParametersSLSA1{
				BuilderPlatform: platformKey(content.Host()), DockerfileVersion: p.Dockerfile,
			},
		},
		RunDetails: types.ProvenanceRunDetailsSLSA1{
			ProvenanceRunDetails: slsa1.ProvenanceRunDetails{Builder: slsa1.Builder{ID: p.BuilderID}},
			Metadata: &types.ProvenanceMetadataSLSA1{
				BuildMetadata: slsa1.BuildMetadata{InvocationID: invocation, StartedOn: &started, FinishedOn: &finished},
				Reproducible:  p.Reproducible,
				Completeness:  types.BuildKitComplete{Request: p.Max, ResolvedDependencies: len(p.Locals) == 0},
			},
		},
	}
	if p.Max {
		steps, source := definition(nodes)
		pred.BuildDefinition.InternalParameters.BuildConfig = steps
		pred.RunDetails.Metadata.BuildKitMetadata.Source = source
	}
	if p.Version == "v0.2" {
		return predicateSLSA02, pred.ConvertToSLSA02()
	}
	return predicateSLSA1, pred
}

// args are the frontend's options; build arguments and labels only in max.
func (p *Provenance) args() map[string]string {
	out := map[string]string{}
	for k, v := range p.Options {
		detail := strings.HasPrefix(k, "build-arg:") || strings.HasPrefix(k, "label:")
		if v == "" || detail && !p.Max {
			continue
		}
		switch k {
		case "filename", // which is the config source's path
			"cgroup-parent", "image-resolve-mode", "platform": // which are the builder's
			continue
		}
		if k == "context" || strings.HasPrefix(k, "context:") {
			v = urlutil.RedactCredentials(v)
		}
		out[k] = v
	}
	if len(out) == 0 {
		return nil
	}
	return out
}

// configSource is the Dockerfile and, if that was a URL, where it came from.
func (e *Engine) configSource(p *Provenance, nodes []*Node) types.ProvenanceConfigSourceSLSA1 {
	c := types.ProvenanceConfigSourceSLSA1{Path: p.Options["filename"]}
	if c.Path == "" {
		c.Path = "Dockerfile"
	}
	uri := urlutil.RedactCredentials(p.Options["context"])
	if uri == "" {
		return c
	}
	bare, _, _ := strings.Cut(uri, "#") // of a repository, which a material names with what was checked out
	for _, m := range e.materials(nodes) {
		if m.URI == uri || m.URI == bare || strings.HasPrefix(m.URI, bare+"#") {
			c.URI, c.Digest = m.URI, m.Digest
		}
	}
	return c
}

// materials are what the build read from elsewhere, in order; of images, those
// that nodes name.
func (e *Engine) materials(nodes []*Node) []slsa1.ResourceDescriptor {
	used := map[string]bool{}
	for _, n := range nodes {
		if _, d, ok := strings.Cut(n.Op.GetSource().GetIdentifier(), "@"); ok {
			used[d+" "+platformKey((&step{v: n}).platform())] = true
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	byURI := map[string]slsa.DigestSet{}
	for _, img := range e.pulled {
		if used[string(img.top.Digest)+" "+platformKey(img.platform)] {
			r := img.ref
			if r.Tag != "" {
				r.Digest = "" // the frontend pins what it resolved
			}
			byURI[purl(r, img.platform)] = slsa.DigestSet{"sha256": img.top.Digest.Encoded()}
		}
	}
	for _, d := range e.downloads {
		if d.rec != nil && !strings.HasPrefix(d.url, UploadURL("")) {
			byURI[urlutil.RedactCredentials(d.url)] = slsa.DigestSet{"sha256": d.rec.Digest.Encoded()}
		}
	}
	for _, c := range e.commits {
		if hash := c.commit.Hash(); hash != "" {
			kind := "sha1"
			if len(hash) == 64 {
				kind = "sha256"
			}
			byURI[urlutil.RedactCredentials(c.uri)] = slsa.DigestSet{kind: hash}
		}
	}
	var out []slsa1.ResourceDescriptor
	for _, uri := range slices.Sorted(maps.Keys(byURI)) {
		out = append(out, slsa1.ResourceDescriptor{URI: uri, Digest: byURI[uri]})
	}
	return out
}

// graph lists the operations that edge needs, each after its inputs.
func graph(edge Edge) []*Node {
	var out []*Node
	seen := map[*Node]bool{}
	var visit func(n *Node)
	visit = func(n *Node) {
		if n == nil || seen[n] {
			return
		}
		seen[n] = true
		for _, in := range n.Inputs {
			visit(in.Vertex)
		}
		out = append(out, n)
	}
	visit(edge.Vertex)
	return out
}

// secrets names, never shows, what the commands were given.
func secrets(r *types.Parameters, nodes []*Node) {
	seen := map[string]bool{}
	for _, n := range nodes {
		exec := n.Op.GetExec()
		if exec == nil {
			continue
		}
		add := func(id string, optional bool) {
			if !seen["secret "+id] {
				seen["secret "+id] = true
				r.Secrets = append(r.Secrets, &types.Secret{ID: id, Optional: optional})
			}
		}
		for _, s := range exec.Secretenv {
			add(s.ID, s.Optional)
		}
		for _, m := range exec.Mounts {
			switch {
			case m.MountType == pb.MountType_SECRET && m.SecretOpt != nil:
				add(m.SecretOpt.ID, m.SecretOpt.Optional)
			case m.MountType == pb.MountType_SSH && m.SSHOpt != nil && !seen["ssh "+m.SSHOpt.ID]:
				seen["ssh "+m.SSHOpt.ID] = true
				r.SSH = append(r.SSH, &types.SSH{ID: m.SSHOpt.ID, Optional: m.SSHOpt.Optional})
			}
		}
	}
}

// definition is the graph as BuildKit writes it down, and the files that it
// comes from.
func definition(nodes []*Node) (*types.BuildConfig, *types.Source) {
	config := &types.BuildConfig{DigestMapping: map[oci.Digest]string{}}
	source := &types.Source{Locations: map[string]*pb.Locations{}}
	ids, files := map[*Node]string{}, map[*pb.SourceInfo]int{}
	for i, n := range nodes {
		id := fmt.Sprintf("step%d", i)
		ids[n] = id
		config.DigestMapping[n.Digest] = id
		step := types.BuildStep{ID: id, Op: n.Op}
		for _, in := range n.Inputs {
			if in.Vertex != nil {
				step.Inputs = append(step.Inputs, fmt.Sprintf("%s:%d", ids[in.Vertex], in.Index))
			}
		}
		config.Definition = append(config.Definition, step)
		for _, place := range n.Sources {
			if place.Info == nil {
				continue
			}
			at, known := files[place.Info]
			if !known {
				at = len(source.Infos)
				files[place.Info] = at
				source.Infos = append(source.Infos, types.SourceInfo{
					Filename: place.Info.Filename, Language: place.Info.Language, Data: place.Info.Data,
				})
			}
			if source.Locations[id] == nil {
				source.Locations[id] = &pb.Locations{}
			}
			source.Locations[id].Locations = append(source.Locations[id].Locations,
				&pb.Location{SourceIndex: int32(at), Ranges: place.Ranges})
		}
	}
	return config, source
}

// BuildProvenance is the predicate that --metadata-file shows of img, in the
// form that buildx has there: without the graph and the times unless max asks
// for them.
func (e *Engine) BuildProvenance(img Image, p Provenance, max bool) any {
	p.Max, p.Version = true, "v0.2"
	_, pred := e.provenance(img, &p)
	if short, ok := pred.(*types.ProvenancePredicateSLSA02); ok && !max {
		short.BuildConfig, short.Metadata = nil, nil
	}
	return pred
}
