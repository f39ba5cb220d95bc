package cli

import (
	"bytes"
	"fmt"
	"strconv"

	"github.com/docker/cli/templates"

	"github.com/strake-project/strake/internal/oci"
)

// usageObject is what `system df -v --format` prints: docker's lists, whose
// rows have the fields of the other commands' rows.
type usageObject struct {
	Images     []*imageRow
	Containers []*psRow
	Volumes    []usageVolume
	BuildCache []usageCache
}

type usageVolume struct {
	Links string
	Name  string
	Size  string
}

type usageCache struct {
	CacheType   string
	CreatedAt   string
	ID          string
	InUse       string
	LastUsedAt  string
	Shared      string
	Size        string
	Description string
}

// formatUsage prints u with a template, or as JSON.
func (a *App) formatUsage(u *diskUsage, format string) error {
	if format == "json" {
		format = "{{json .}}"
	}
	tmpl, err := templates.Parse(format)
	if err != nil {
		return fmt.Errorf("template parsing error: %w", err)
	}
	var b bytes.Buffer
	if err := tmpl.Execute(&b, u.object()); err != nil {
		return dockerTypes(fmt.Errorf("template parsing error: %w", err), "*cli.usageObject", "*formatter.diskUsageContext", a.name)
	}
	b.WriteByte('\n')
	_, err = b.WriteTo(a.Out)
	return err
}

func (u *diskUsage) object() *usageObject {
	o := &usageObject{Images: []*imageRow{}, Containers: []*psRow{}, Volumes: []usageVolume{}, BuildCache: []usageCache{}}
	owners := u.owners()
	for i := range u.images {
		img := &u.images[i]
		size, unique := u.shareOf(i, owners)
		for _, r := range imageRows(img, &imagesOptions{}, false) {
			r.Size, r.SharedSize, r.UniqueSize, r.VirtualSize = humanSize(size), humanSize(size-unique), humanSize(unique), humanSize(size)
			r.Containers = strconv.Itoa(u.users[img.ID])
			o.Images = append(o.Images, r)
		}
	}
	for _, c := range u.containers {
		own, volumes := u.set.Usage(c)
		r := newPsRow(c, false)
		r.Size, r.LocalVolumes = humanSize(own), strconv.Itoa(len(volumes))
		o.Containers = append(o.Containers, r)
		for i, v := range volumes {
			o.Volumes = append(o.Volumes, usageVolume{Name: fmt.Sprintf("%s/%d", r.ID, i), Links: "1", Size: humanSize(v)})
		}
	}
	for _, c := range u.cache {
		o.BuildCache = append(o.BuildCache, usageCache{ID: c.ID[:12], CacheType: c.Type, Size: humanSize(c.Size), CreatedAt: c.Created.UTC().String(),
			LastUsedAt: c.Used.UTC().String(), InUse: strconv.FormatBool(c.InUse), Shared: strconv.FormatBool(c.Shared)})
	}
	return o
}

// owners counts the images that reach each digest.
func (u *diskUsage) owners() map[oci.Digest]int {
	owners := map[oci.Digest]int{}
	for _, r := range u.reach {
		for d := range r {
			owners[d]++
		}
	}
	return owners
}

// shareOf is the size on disk of image i, and what of it no other image has.
func (u *diskUsage) shareOf(i int, owners map[oci.Digest]int) (size, unique int64) {
	for d := range u.reach[i] {
		if owners[d] == 1 {
			unique += u.disk.Bytes[d]
		}
	}
	return u.disk.Sum(u.reach[i]), unique
}
