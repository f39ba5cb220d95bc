package store_test

import (
	"time"

	"github.com/strake-project/strake/internal/oci/layer"
	"github.com/strake-project/strake/internal/oci/ref"
)

var epoch = time.Unix(1700000000, 0)

func refOf(s string) (ref.Ref, error) { return ref.ParseImage(s) }

func entry(path string, size int) layer.Entry {
	return layer.Entry{Path: path, Type: layer.Regular, Mode: 0o644, Size: int64(size), ModTime: epoch}
}
