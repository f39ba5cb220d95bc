// Package sbom writes what an image has installed as an SPDX 2.3 document: the
// packages that the databases of dpkg and apk name, read through a view of the
// layers. Nothing is unpacked and no scanner runs.
package sbom

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/strake-project/strake/internal/image"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/layer"
	"github.com/strake-project/strake/internal/oci/tree"
)

type document struct {
	Version       string         `json:"spdxVersion"`
	License       string         `json:"dataLicense"`
	ID            string         `json:"SPDXID"`
	Name          string         `json:"name"`
	Namespace     string         `json:"documentNamespace"`
	Creation      creation       `json:"creationInfo"`
	Packages      []spdxPackage  `json:"packages"`
	Relationships []relationship `json:"relationships"`
}

type creation struct {
	Creators []string `json:"creators"`
	Created  string   `json:"created"`
}

type spdxPackage struct {
	Name     string     `json:"name"`
	ID       string     `json:"SPDXID"`
	Version  string     `json:"versionInfo,omitempty"`
	Location string     `json:"downloadLocation"`
	Analysed bool       `json:"filesAnalyzed"`
	License  string     `json:"licenseConcluded"`
	Declared string     `json:"licenseDeclared"`
	Copy     string     `json:"copyrightText"`
	Purpose  string     `json:"primaryPackagePurpose,omitempty"`
	Refs     []external `json:"externalRefs,omitempty"`
}

type external struct {
	Category string `json:"referenceCategory"`
	Type     string `json:"referenceType"`
	Locator  string `json:"referenceLocator"`
}

type relationship struct {
	From string `json:"spdxElementId"`
	To   string `json:"relatedSpdxElement"`
	Type string `json:"relationshipType"`
}

const noAssertion = "NOASSERTION"

// SPDX describes the file system v. The same packages and time give the same
// bytes.
func SPDX(ctx context.Context, v tree.View, created time.Time) ([]byte, error) {
	if rpm, err := hasRPM(v); err != nil || rpm != "" {
		if err == nil {
			err = fmt.Errorf("/%s: SBOMs of rpm databases are %w", rpm, oci.ErrUnsupported)
		}
		return nil, err
	}
	pkgs, err := image.Packages(ctx, v)
	if err != nil {
		return nil, err
	}
	system, err := release(ctx, v)
	if err != nil {
		return nil, err
	}
	doc := document{
		Version: "SPDX-2.3", License: "CC0-1.0", ID: "SPDXRef-DOCUMENT", Name: "image",
		Creation: creation{Creators: []string{"Organization: strake-project", "Tool: strake"}, Created: created.UTC().Format(time.RFC3339)},
		Packages: []spdxPackage{{
			Name: "image", ID: "SPDXRef-Image", Location: noAssertion, License: noAssertion, Declared: noAssertion, Copy: noAssertion, Purpose: "CONTAINER",
		}},
		Relationships: []relationship{{"SPDXRef-DOCUMENT", "SPDXRef-Image", "DESCRIBES"}},
	}
	if system["ID"] != "" {
		doc.Packages = append(doc.Packages, spdxPackage{
			Name: system["ID"], ID: "SPDXRef-OperatingSystem", Version: system["VERSION_ID"],
			Location: noAssertion, License: noAssertion, Declared: noAssertion, Copy: noAssertion, Purpose: "OPERATING_SYSTEM",
		})
		doc.Relationships = append(doc.Relationships, relationship{"SPDXRef-Image", "SPDXRef-OperatingSystem", "CONTAINS"})
	}
	for i, p := range pkgs {
		id := "SPDXRef-Package-" + strconv.Itoa(i+1)
		doc.Packages = append(doc.Packages, spdxPackage{
			Name: p.Name, ID: id, Version: p.Version, Location: noAssertion, License: noAssertion, Declared: noAssertion, Copy: noAssertion,
			Refs: []external{{"PACKAGE-MANAGER", "purl", purl(p, system)}},
		})
		doc.Relationships = append(doc.Relationships, relationship{"SPDXRef-Image", id, "CONTAINS"})
	}
	body, err := json.Marshal(doc)
	if err != nil {
		return nil, err
	}
	// What is in it names it: a document of its own for each other content.
	doc.Namespace = "https://github.com/strake-project/strake/spdx/" + digest.FromBytes(body).Encoded()
	return json.Marshal(doc)
}

// purl is a package's URL: pkg:deb/debian/curl@7.88?arch=amd64&distro=debian-12
func purl(p image.Package, system map[string]string) string {
	kind, vendor := "deb", "debian"
	if p.Manager == "apk" {
		kind, vendor = "apk", "alpine"
	}
	query := url.Values{}
	if p.Arch != "" {
		query.Set("arch", p.Arch)
	}
	if id := system["ID"]; id != "" {
		vendor = id
		if v := system["VERSION_ID"]; v != "" {
			query.Set("distro", id+"-"+v)
		}
	}
	s := fmt.Sprintf("pkg:%s/%s/%s@%s", kind, url.PathEscape(vendor), url.PathEscape(p.Name), url.QueryEscape(p.Version))
	if len(query) > 0 {
		s += "?" + query.Encode()
	}
	return s
}

// hasRPM returns the path of an rpm database, "" where there is none. To leave
// its packages out in silence would be worse than no document.
func hasRPM(v tree.View) (string, error) {
	for _, p := range []string{"var/lib/rpm/rpmdb.sqlite", "var/lib/rpm/Packages", "var/lib/rpm/Packages.db", "usr/lib/sysimage/rpm/rpmdb.sqlite"} {
		at, err := tree.Resolve(v, p, true)
		if err != nil {
			continue
		}
		if _, err := v.Lstat(at); err == nil {
			return p, nil
		} else if !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
	}
	return "", nil
}

// release reads os-release; an image may have none.
func release(ctx context.Context, v tree.View) (map[string]string, error) {
	out := map[string]string{}
	for _, p := range []string{"etc/os-release", "usr/lib/os-release"} {
		at, err := tree.Resolve(v, p, true)
		if err != nil {
			continue
		}
		e, err := v.Lstat(at)
		if err != nil || e.Type != layer.Regular {
			continue
		}
		r, err := v.Open(ctx, at)
		if err != nil {
			return nil, err
		}
		b, err := io.ReadAll(io.LimitReader(r, 64<<10))
		r.Close()
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(string(b)) {
			if k, val, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
				out[k] = strings.Trim(val, `"'`)
			}
		}
		break
	}
	return out, nil
}
