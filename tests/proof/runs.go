package proof

import (
	"slices"
	"strings"
	"time"
)

// Run is one package whose tests the page is made of.
type Run struct {
	Package string // path from the root of the tree
	What    string // is shown by it
	Tests   string // -run; "" for all
	Timeout time.Duration
	Long    bool // with TANDEM_LONG: the whole of what CI runs a sample of
	Whole   bool // nothing that a sample needs
}

// runs are the packages in which something is proven, the quick ones first: a page that
// will fail should say so early.
var runs = []Run{
	{Package: "bootctl", What: "the boot record as values"},
	{Package: "bootctl/grubenv", What: "the boot record's bytes, as GRUB has them"},
	{Package: "bootctl/bootreport", What: "the log of boots"},
	{Package: "bootctl/early", What: "the first program of a slot"},
	{Package: "bootctl/watchdog", What: "the watchdog and who feeds it"},
	{Package: "partition", What: "writing the spare slot"},
	{Package: "partition/datafile", What: "small files on the data partition"},
	{Package: "partition/datafile/datafiletest", What: "the file system that loses power"},
	{Package: "partition/disktest", What: "the disk that loses power"},
	{Package: "partition/verity", What: "integrity of the running system"},
	{Package: "tpm", What: "the ledger in the TPM"},
	{Package: "transport", What: "messages between fleet and device"},
	{Package: "transport/mqtt", What: "the link, and brokers that lie"},
	{Package: "transport/broker", What: "who may say and hear what"},
	{Package: "updater/manifest", What: "what a release says about itself"},
	{Package: "updater/trust", What: "signatures, keys and their rotation"},
	{Package: "updater/trust/strictjson", What: "JSON without ambiguity"},
	{Package: "updater/journal", What: "the journal"},
	{Package: "updater/control", What: "local commands"},
	{Package: "updater/external", What: "programs that install what is no slot"},
	{Package: "updater/health", What: "health checks"},
	{Package: "updater/cmd/updater", What: "the device program"},
	{Package: "updater/delta", What: "deltas, whole and damaged"},
	{Package: "updater/delta/blocks", What: "index payloads, whole and damaged"},
	{Package: "updater/delta/predict", What: "predicted addresses, hostile plans"},
	{Package: "updater/delta/recode", What: "recoded streams, hostile ones"},
	{Package: "updater/release", What: "releases as folders and archives"},
	{Package: "updater/release/mkrelease", What: "the desk's side of a release"},
	{Package: "boards", What: "board files"},
	{Package: "boards/image", What: "slot and disk images"},
	{Package: "qemu/tiny/port", What: "the lab's line into a guest"},
	{Package: "updater/delta/mkdelta/files", What: "the desk reads file systems"},
	{Package: "updater/delta/mkdelta/mkleaves", What: "the desk makes lists of leaves"},
	{Package: "updater/delta/mkdelta", What: "the desk makes deltas", Whole: true, Timeout: time.Hour},
	{Package: "updater/delta/mkdelta/advice", What: "what makes a delta large", Whole: true},
	{Package: "updater/delta/mkdelta/compressed", What: "what is compressed in an image", Whole: true},
	{Package: "updater/delta/mkdelta/elfplan", What: "programs in an image", Whole: true},
	{Package: "updater/delta/mkdelta/mkblocks", What: "the desk makes index payloads", Whole: true},
	{Package: "updater/delta/mkdelta/recodescan", What: "streams that can be made again", Whole: true},
	{Package: "updater/tail", What: "last lines of a log", Whole: true},
	{Package: "updater/trust/mktrust", What: "the desk's keys and metadata", Whole: true},
	{Package: "updater/cmd/tandem", What: "the desk program", Whole: true},
	{Package: "qemu", What: "the lab", Whole: true},
	{Package: "qemu/debian", What: "the lab's Debian", Whole: true},
	{Package: "qemu/tiny", What: "the lab's small system", Whole: true},
	{Package: "qemu/tiny/guest", What: "the lab's program in a guest", Whole: true},
	{Package: "tests/bench", What: "the bench of deltas", Whole: true},
	{Package: "tests/demo", What: "the demo", Whole: true},
	{Package: "tests/proof", What: "this page"},
	{Package: "tests/mutants", What: "the register of seeded bugs"},
	{Package: "tests/attacks", What: "hostile input", Timeout: 30 * time.Minute},
	{Package: "bootctl/boottest", What: "models of loaders, held against the real GRUB", Timeout: 30 * time.Minute},
	{Package: "updater", What: "the whole update: power cuts, faults, wear, ten years", Timeout: 90 * time.Minute, Long: true},
	{Package: "tests/crosscheck", What: "independent tools: recorder, faults, kills", Timeout: 90 * time.Minute, Long: true},
}

// storyPackage has the stories, of which a sample has those that requirements name.
const storyPackage = "tests"

// all is runs and the stories: every package of the tree that has tests, but for a sample.
func all(sample bool) []Run {
	stories := Run{Package: storyPackage, What: "stories: whole devices in QEMU", Tests: "^TestStories$", Timeout: 3 * time.Hour}
	if !sample {
		return append(slices.Clone(runs), stories)
	}
	stories.Timeout = 90 * time.Minute
	stories.Tests = "TestStories/^(" + strings.Join(storiesOf(requirements), "|") + ")$"
	return append(slices.DeleteFunc(slices.Clone(runs), func(r Run) bool { return r.Whole }), stories)
}
