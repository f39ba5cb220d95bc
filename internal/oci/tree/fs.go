package tree

import "io/fs"

// FileSystem is what FS returns.
type FileSystem interface {
	fs.ReadDirFS
	fs.StatFS
	fs.ReadLinkFS
}
