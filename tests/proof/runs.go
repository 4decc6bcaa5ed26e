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
	{Package: "tests/proof", What: "this page"},
	{Package: "tests/mutants", What: "the register of seeded bugs"},
	{Package: "tests/attacks", What: "hostile input", Timeout: 30 * time.Minute},
	{Package: "bootctl/boottest", What: "models of loaders, held against the real GRUB", Timeout: 30 * time.Minute},
	{Package: "updater", What: "the whole update: power cuts, faults, wear, ten years", Timeout: 90 * time.Minute, Long: true},
	{Package: "tests/crosscheck", What: "independent tools: recorder, faults, kills", Timeout: 90 * time.Minute, Long: true},
}

// storyPackage has the stories, of which only those run that requirements name.
const storyPackage = "tests"

// all is runs and the stories.
func all() []Run {
	return append(slices.Clone(runs), Run{
		Package: storyPackage, What: "stories: whole devices in QEMU", Timeout: 90 * time.Minute,
		Tests: "TestStories/^(" + strings.Join(storiesOf(requirements), "|") + ")$",
	})
}
