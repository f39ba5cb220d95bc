package cli

// traits are what has to be known of a command from outside of it.
type traits struct {
	completes int // what a shell completes as its arguments
	needs     need
	long      bool // it may take more than a second and shows no progress of its own
}

// need is when an ordinary user's command needs a user namespace.
type need int

const (
	never    need = iota // it moves bytes and looks at rows
	forTrees             // it may read or remove files that belong to subordinate ids
	always               // it unpacks
)

// What a shell completes as arguments. A store that cannot be read completes
// nothing, and none is made for it.
const (
	completeImages     = 1 << iota // names of local images
	completeRepos                  // their repositories too
	completeContainers             // names of containers
	completeFirst                  // the first argument only
	completeFiles                  // after that, files
)

// commandTraits has the traits of every command, by its path below the root.
func commandTraits() map[string]traits {
	const (
		image     = completeImages | completeFirst
		name      = completeImages | completeRepos | completeFirst
		container = completeContainers | completeFirst
	)
	m := map[string]traits{}
	is := func(t traits, paths ...string) {
		for _, p := range paths {
			m[p] = t
		}
	}
	is(traits{needs: always}, "build", "builder build", "buildx build", "image build")
	is(traits{image, always, false}, "run", "container run")
	is(traits{name, never, false}, "pull", "image pull")
	is(traits{name, forTrees, false}, "push", "image push")
	is(traits{0, never, false}, "load", "image load")
	is(traits{0, never, true}, "import", "image import")
	is(traits{completeImages | completeRepos, forTrees, true}, "save", "image save")

	is(traits{name, never, true}, "images", "image ls")
	is(traits{image, never, true}, "history", "image history", "image log", "image mutate")
	is(traits{completeImages, never, true}, "tag", "image tag", "image inspect", "image pin", "image unpin", "outdated")
	is(traits{completeImages | completeContainers, never, true}, "inspect")
	is(traits{image, always, true}, "image cat", "image squash")
	is(traits{image | completeFiles, always, true}, "image cp")
	is(traits{completeImages, always, true}, "image diff")
	is(traits{image, forTrees, true}, "image rebase")
	is(traits{completeImages, forTrees, true}, "rmi", "image rm")
	is(traits{0, forTrees, true}, "image prune", "undo")

	is(traits{0, never, true}, "ps", "container ls")
	is(traits{completeContainers, never, true}, "container inspect")
	is(traits{completeContainers, forTrees, true}, "rm", "container rm")
	is(traits{container, forTrees, true}, "commit", "container commit", "diff", "container diff", "export", "container export")
	is(traits{0, forTrees, true}, "container prune")

	is(traits{0, forTrees, true}, "builder du", "buildx du", "builder prune", "buildx prune")
	is(traits{0, forTrees, true}, "system df", "system prune", "system reclaim")
	is(traits{0, never, true}, "info", "system info", "search")
	is(traits{completeRepos | completeFirst, never, true}, "tags")
	is(traits{completeImages | completeRepos, never, true}, "manifest create", "manifest inspect")
	is(traits{0, never, true}, "manifest annotate", "manifest push", "manifest rm", "buildx imagetools create", "buildx imagetools inspect")
	is(traits{0, forTrees, false}, "doctor", "registry serve") // which tell what they do
	is(traits{0, never, false}, "login", "logout", "version", "man", "install-shim")
	return m
}
