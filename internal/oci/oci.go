// Package oci holds the vocabulary every other room speaks: descriptors,
// manifests, image configs, platforms and the kinds of error. It follows the
// OCI image specification v1.1 and docker's older schema 2, which differ only
// in media types.
//
// The types are aliases of the specification's own, so that no conversion is
// ever needed between strake and a library.
package oci

import (
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

type (
	// Digest is "sha256:" and 64 hex digits.
	Digest = digest.Digest
	// Descriptor names content by media type, digest and size in bytes.
	Descriptor = v1.Descriptor
	// Manifest is one image for one platform: a config and its layers.
	Manifest = v1.Manifest
	// Index is a list of manifests, one for each platform (docker: manifest list).
	Index = v1.Index
	// Platform is operating system, architecture and variant.
	Platform = v1.Platform
	// Image is an image config: docker's superset of the OCI one
	// (healthcheck, shell, onbuild). Its JSON bytes' digest is the image ID.
	Image = dockerspec.DockerOCIImage
	// History is one line of an image config's history.
	History = v1.History
)

// Media types of what strake reads and writes. Docker's come from
// distribution's schema 2; a reader treats each pair as the same thing.
const (
	MediaTypeManifest      = v1.MediaTypeImageManifest
	MediaTypeIndex         = v1.MediaTypeImageIndex
	MediaTypeConfig        = v1.MediaTypeImageConfig
	MediaTypeLayer         = v1.MediaTypeImageLayer
	MediaTypeLayerGzip     = v1.MediaTypeImageLayerGzip
	MediaTypeLayerZstd     = v1.MediaTypeImageLayerZstd
	MediaTypeEmptyJSON     = v1.MediaTypeEmptyJSON
	MediaTypeDockerSchema1 = "application/vnd.docker.distribution.manifest.v1+json"
	MediaTypeDockerSigned1 = "application/vnd.docker.distribution.manifest.v1+prettyjws"
	MediaTypeDockerMani    = "application/vnd.docker.distribution.manifest.v2+json"
	MediaTypeDockerList    = "application/vnd.docker.distribution.manifest.list.v2+json"
	MediaTypeDockerConfig  = "application/vnd.docker.container.image.v1+json"
	MediaTypeDockerLayer   = "application/vnd.docker.image.rootfs.diff.tar"
	MediaTypeDockerGzip    = "application/vnd.docker.image.rootfs.diff.tar.gzip"
	MediaTypeDockerZstd    = "application/vnd.docker.image.rootfs.diff.tar.zstd"
	MediaTypeDockerForeign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
)

// MaxManifestSize bounds a manifest, an index and an image config, in bytes.
// The distribution specification asks registries for 4 MiB of manifest.
const MaxManifestSize = 4 << 20

// IsManifest tells whether mediaType is a single image's manifest.
func IsManifest(mediaType string) bool {
	return mediaType == MediaTypeManifest || mediaType == MediaTypeDockerMani
}

// IsIndex tells whether mediaType is an index or a docker manifest list.
func IsIndex(mediaType string) bool {
	return mediaType == MediaTypeIndex || mediaType == MediaTypeDockerList
}

// IsLayer tells whether mediaType is a file system layer in any packing.
func IsLayer(mediaType string) bool {
	switch mediaType {
	case MediaTypeLayer, MediaTypeLayerGzip, MediaTypeLayerZstd,
		MediaTypeDockerLayer, MediaTypeDockerGzip, MediaTypeDockerZstd:
		return true
	}
	return false
}

// IsPlainLayer tells whether mediaType is an uncompressed layer tar, whose
// digest therefore is its diffID.
func IsPlainLayer(mediaType string) bool {
	return mediaType == MediaTypeLayer || mediaType == MediaTypeDockerLayer
}
