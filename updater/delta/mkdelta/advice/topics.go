package advice

import "github.com/tandem-ota/tandem/updater/delta/mkdelta/compressed"

// Topics of advice.
const (
	TopicSystem      = "file system"
	TopicInitrd      = "initrd"
	TopicKernel      = "kernel"
	TopicModules     = "modules"
	TopicFiles       = "compressed files"
	TopicSignatures  = "signatures"
	TopicMetadata    = "metadata"
	TopicJournal     = "journal"
	TopicFree        = "free blocks"
	TopicMoved       = "moved files"
	TopicIdentifiers = "identifiers"
	TopicRest        = "all else" // no advice: the rest of the delta
)

var topics = map[string]string{compressed.KindInitrd: TopicInitrd, compressed.KindKernel: TopicKernel, compressed.KindModule: TopicModules, compressed.KindFile: TopicFiles}

var remedies = map[string]string{
	TopicSystem:      "do not compress the file system: ext4, or erofs without compression, under dm-verity",
	TopicInitrd:      "store the initramfs as a plain archive (COMPRESS=cat; tandem image slots --unpack)",
	TopicKernel:      "choose a kernel compression that the encoder sees into: gzip or zstd, or none where the kernel boots so (arm64); the figure is for none",
	TopicModules:     "install kernel modules uncompressed (CONFIG_MODULE_COMPRESS_NONE, or unpack them and run depmod)",
	TopicFiles:       "leave out or store plain (man pages, change logs, fonts)",
	TopicSignatures:  "strip the signatures of kernel modules, if the kernel does not insist on them (module.sig_enforce, lockdown): dm-verity covers the files",
	TopicMetadata:    "give files fixed times (SOURCE_DATE_EPOCH) and the file system no checksums: dm-verity has them",
	TopicJournal:     "make the file system without a journal: it is never written",
	TopicFree:        "clear blocks that nothing uses: make the image anew instead of copying a used one",
	TopicMoved:       "place files where they were in the release before (tandem image slots --like OLD)",
	TopicIdentifiers: "give the file system the same UUID and hash seed in each release (mke2fs -U, -E hash_seed=)",
}
