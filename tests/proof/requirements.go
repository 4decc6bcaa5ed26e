package proof

// Requirement is one row of a standard, in our words, and the tests that it was held
// against. Standards' own texts are longer, and some are for sale: this page says "tested
// against", and an assessor says whether that is enough.
type Requirement struct {
	Standard string
	ID       string
	Text     string
	// Tests are "package.Test", "package.Test/subtest", where all subtests whose names go on
	// from there are meant, or "story NAME" (tests/stories).
	Tests []string
	// Outside is why nothing is claimed: the row is for others than an updater, or no test
	// shows it.
	Outside string
}

const (
	cra    = "Cyber Resilience Act, Annex I"
	iec    = "IEC 62443-4-2"
	nist   = "NIST SP 800-193"
	nistir = "NISTIR 8259A"
	suit   = "SUIT (RFC 9019, 9124)"
)

// requirements are the rows of reference/reliability.md, split where two things are asked.
var requirements = []Requirement{
	{cra, "I (2)(a)", "known vulnerabilities: three that we know of in modules of the device or the desk do not come back, by the versions of these; others are not looked for", []string{"tests/proof.TestNoKnownHoles"}, ""},
	{cra, "I (2)(b)", "secure by default: without keys, or without enough of them, nothing is accepted", []string{"updater/trust.TestKeySetRefused", "updater/trust.TestEnvelopeRefused", "tests/attacks.TestAttacks/statement/while-nobody-may-make-them", "tests/attacks.TestAttacks/signature"}, ""},
	{cra, "I (2)(b)", "reset to the original state", nil, "the product's own data is the product's; the updater keeps nothing that a reset would have to undo"},
	{cra, "I (2)(c)", "security updates, by themselves where the fleet wants so", []string{"updater.TestRunFollowsDesiredState", "updater.TestRunTriesAgain"}, ""},
	{cra, "I (2)(c)", "updates can be postponed and cancelled; one that was begun or held back is not lost over a restart", []string{"updater.TestRunWaitsForLeave", "updater.TestRunCancelled", "updater.TestHold", "updater.TestRunKeepsWhatIsStillWanted", "updater.TestInterruptedKeepsPlace"}, ""},
	{cra, "I (2)(d)", "protection from unauthorised access: who may order, say and hear what, and change something on the device", []string{"transport/broker.TestAccess", "transport/broker.TestAccessWithoutCertificate", "updater/trust.TestStatement", "updater.TestRunIgnoresOthers", "updater/control.TestRefused", "tests/attacks.TestAttacks/statement"}, ""},
	{cra, "I (2)(e)", "confidentiality of data in transit: a device says nothing, not even its name, to a broker without TLS, with an old one, or with a certificate of another authority", []string{"tests/attacks.TestAttacks/mqtt/plain-text", "tests/attacks.TestAttacks/mqtt/old-tls", "tests/attacks.TestAttacks/mqtt/wrong-authority"}, ""},
	{cra, "I (2)(f)", "integrity of commands and programs, in transit and stored; corruption is reported", []string{"updater/trust.TestFlippedByte", "updater/trust.TestStatement", "updater.TestLyingSource", "partition/verity.TestRootNoticesEveryBlock", "updater.TestVerifySlot", "updater.TestReadBackFindsRot", "updater.TestRottenBase", "tests/attacks.TestAttacks/record"}, ""},
	{cra, "I (2)(g)", "as little data as is needed", nil, "what a device says is in transport/FORMAT.md; what its product collects is the product's"},
	{cra, "I (2)(h)", "essential functions are available after an incident: the running system is left alone, and the old one comes back", []string{"updater.TestExplorer", "updater.TestSickReleaseReverts", "updater.TestDeadReleaseReverts"}, ""},
	{cra, "I (2)(i)", "little harm to others' networks: retries grow rare, rates and budgets hold", []string{"updater.TestRunTriesAgain", "transport/mqtt.TestReadWithinRateAndBudget"}, ""},
	{cra, "I (2)(j)", "attack surface: the size of input is bounded before memory is spent on it", []string{"updater/manifest.TestManifestLimits", "updater/trust/strictjson.TestCheckLimits", "transport/mqtt.TestGuardRefusesHugePacket", "partition.TestReadTableRefuses", "tests/attacks.TestAttacks/zstd"}, ""},
	{cra, "I (2)(k)", "the effect of an incident is reduced: a bad release ends in the system before it", []string{"story trial_panics_reverts", "story kernel_hangs_reverts", "story unhealthy_reverts"}, ""},
	{cra, "I (2)(l)", "what happened is recorded and told", []string{"updater.TestVerdictOncePerAttempt", "tpm.TestLedger", "bootctl/bootreport.TestExplain"}, ""},
	{cra, "I (2)(m)", "users can remove their data", nil, "the data partition is the product's"},
	{cra, "II (1)", "a release can carry a bill of materials, which its signed manifest names", []string{"updater/release/mkrelease.TestCreate"}, ""},
	{cra, "II (7)", "updates are distributed securely", []string{"updater/trust.TestAttacks", "updater/trust.TestOfflineStick", "story bad_signature_refused"}, ""},

	{iec, "EDR 3.10", "support for updates", []string{"updater.TestUpdateCommits", "story update_commit"}, ""},
	{iec, "EDR 3.10 RE(1)", "authenticity and integrity are checked before an update is installed", []string{"updater/trust.TestEnvelopeCorruption", "updater.TestLyingSource", "story bad_signature_refused", "tests/attacks.TestAttacks/signature"}, ""},
	{iec, "EDR 3.11", "physical tamper resistance", nil, "hardware"},
	{iec, "EDR 3.12", "the supplier's roots of trust: only who has the old ones can replace them, and what is lost or garbled in the device's store brings no others", []string{"updater/trust.TestAttacks", "updater/trust.TestStoreCorrupted"}, ""},
	{iec, "EDR 3.13", "the asset owner's keys: whoever may order is named by signed metadata, and a key that was revoked orders nothing", []string{"updater/trust.TestStatement", "updater.TestRunIgnoresOthers", "tests/attacks.TestAttacks/statement/by-a-revoked-key", "tests/attacks.TestAttacks/statement/while-nobody-may-make-them"}, ""},
	{iec, "EDR 3.14", "integrity of the boot process: a kernel of another release, or a root with a damaged block, does not go on", []string{"bootctl/early.TestSlot", "partition/verity.TestRootNoticesEveryBlock"}, ""},
	{iec, "EDR 3.14 RE(1)", "authenticity of the boot process: a slot that others signed does not boot, and what runs is measured", []string{"bootctl/early.TestSlot", "story tpm_knows_what_runs"}, ""},
	{iec, "CR 1.8, 1.9", "certificates of another authority, name, time or use, and sets of keys that count one twice or nobody, are refused", []string{"tests/attacks.TestAttacks/mqtt/wrong-authority", "tests/attacks.TestAttacks/mqtt/certificate-of-another-name", "tests/attacks.TestAttacks/mqtt/certificate-expired", "tests/attacks.TestAttacks/mqtt/certificate-not-yet-valid", "tests/attacks.TestAttacks/mqtt/certificate-of-a-client", "transport/broker.TestAccess", "updater/trust.TestKeySetRefused"}, ""},
	{iec, "CR 1.9", "weak keys and algorithms are refused", nil, "no test tries a weak one"},
	{iec, "CR 2.8", "auditable events", []string{"tpm.TestLedger", "updater.TestVerdictOncePerAttempt"}, ""},
	{iec, "CR 2.9, 2.10", "storage for audits is bounded; where it is full, a revert and a commit go on, and an installation does not begin", []string{"bootctl/bootreport.TestAttemptsAreBounded", "updater.TestJournalCannotBeWritten", "tests/attacks.TestAttacks/limits/disk-full-at-every-write"}, ""},
	{iec, "CR 3.4", "integrity of software and information", []string{"partition.TestRecordCorruption", "updater/journal.TestDamage", "bootctl/grubenv.TestParseCorrupt", "partition/datafile.TestPowerCut"}, ""},
	{iec, "CR 3.4 RE(1), RE(2)", "authenticity of software; a violation is told by itself", []string{"updater/trust.TestEnvelopeRefused", "updater.TestRunRefuses", "updater.TestRottenBase"}, ""},
	{iec, "CR 3.5", "input validation", []string{"updater/trust/strictjson.TestCheckRefusesAmbiguity", "transport.TestMessages", "updater/manifest.TestManifestRefused", "updater/cmd/updater.TestReadConfig", "tests/attacks.TestAttacks"}, ""},
	{iec, "CR 3.7", "errors are handled without telling secrets", nil, "no test looks for secrets in what is said"},
	{iec, "CR 3.9", "audit information is protected: a ledger that somebody changed is found out", []string{"tpm.TestLedgerMismatch", "tpm.TestLedger", "tests/attacks.TestAttacks/tpm"}, ""},
	{iec, "CR 6.1", "audit information can be read: the state by everybody on the device, the ledger by independent tools", []string{"updater/control.TestClientAndServer", "updater/control.TestRefused", "story tpm_knows_what_runs"}, ""},
	{iec, "CR 7.1", "denial of service: floods, silence and endless data", []string{"transport/mqtt.TestHugePacket", "transport/mqtt.TestBrokerFallsSilent", "transport/broker.TestFrozenDevice", "tests/attacks.TestAttacks/source"}, ""},
	{iec, "CR 7.2", "resources are managed: memory is bounded", []string{"partition.TestWriterMemory", "updater.TestIndexOverMemory", "tests/attacks.TestAttacks"}, ""},
	{iec, "CR 7.3", "backup", nil, "the product's; the system before stays in the other slot"},
	{iec, "CR 7.4", "recovery and reconstitution", []string{"updater.TestRollback", "updater.TestBootRecordLost", "story data_partition_lost"}, ""},

	{nist, "4.1", "what host software left on the disk is not trusted: boot record, journal, floor", []string{"bootctl/boottest.TestHostileStorage", "updater.TestFloorAndSchemaWithoutJournal", "tests/attacks.TestAttacks/journal"}, ""},
	{nist, "4.2.1", "updates are authenticated, and there is no way past that", []string{"updater.TestAdmission", "story bad_signature_refused", "story wrong_board_refused", "tests/attacks.TestAttacks/signature", "tests/attacks.TestAttacks/manifest"}, ""},
	{nist, "4.2.1.3", "no way back to what must not run again", []string{"updater.TestFloorRisesAtCommit", "updater.TestRollbackRefused", "story downgrade_refused", "tests/attacks.TestAttacks/metadata"}, ""},
	{nist, "4.2.4", "critical data is protected, and a known good state of it kept", []string{"bootctl/boottest.TestGrubenvConforms", "bootctl/boottest.TestGrubenvPairLost"}, ""},
	{nist, "4.3", "corruption is detected, and reported", []string{"updater.TestVerifySlot", "updater.TestReadBackFindsRot", "updater.TestRottenBase", "tests/attacks.TestAttacks/record"}, ""},
	{nist, "4.4.1", "recovery to a state of integrity, by itself or on request, without a network", []string{"updater.TestDeadReleaseReverts", "updater.TestRollback", "story trial_panics_reverts", "story env_unreadable_boots_good"}, ""},
	{nist, "4.4.2", "recovery of critical data", []string{"updater.TestBootRecordLost", "bootctl/boottest.TestGrubenvPairLost", "tpm.TestLedgerCopyLost"}, ""},

	{nistir, "software update", "only by those who may, verified, told apart, and set by policy", []string{"updater.TestRunIgnoresOthers", "updater.TestAdmission", "updater.TestState"}, ""},

	{suit, "REQ.SEC.SEQUENCE", "a lower sequence is refused unless an operator insists; for an update no clock needs to be right", []string{"updater.TestAdmission", "story downgrade_refused", "tests/attacks.TestAttacks/clock/off-by-thirty-years"}, ""},
	{suit, "REQ.SEC.EXP", "what has expired is refused where time is known", []string{"updater/trust.TestStatement", "updater/trust.TestNoClock", "tests/attacks.TestAttacks/metadata/expired", "tests/attacks.TestAttacks/metadata/expired-on-a-stick", "tests/attacks.TestAttacks/statement/of-an-expired-time"}, ""},
	{suit, "REQ.SEC.AUTH.PRECURSOR", "a delta names what it starts from", []string{"updater/manifest.TestManifestRefused", "updater.TestRottenBase", "updater.TestAdmission"}, ""},
	{suit, "REQ.SEC.IMG.COMPLETE_DIGEST", "the digest covers the whole image", []string{"partition.TestReadBack", "partition.TestReadBackIsFromTheMedium"}, ""},
	{suit, "REQ.SEC.MFST.CONST", "what was checked is what is used", []string{"tests/attacks.TestAttacks/manifest/swapped-after-the-check", "updater.TestRunInstallsOnlyWhatIsWanted", "updater.TestLyingSource"}, ""},
	{suit, "REQ.SEC.AUTH.COMPATIBLE", "a release for another board is refused", []string{"updater.TestAdmission", "story wrong_board_refused"}, ""},
	{suit, "REQ.SEC.RIGHTS", "each key for its own purpose", []string{"updater/trust.TestEnvelopeRefused", "updater/trust.TestStatement", "updater/trust.TestAttacks"}, ""},
	{suit, "REQ.SEC.REPORTING", "an attempt has one report", []string{"updater.TestVerdictOncePerAttempt", "updater.TestTenYears"}, ""},
}

// limits are what all of this does not prove.
var limits = []string{
	"No hardware was cut: the disks are models, and files under QEMU. Real flash can lose blocks that nobody was writing, wear out, and take longer than any model.",
	"A disk that says that it has written and has not (class C6) can lose anything. What is shown for it is only that no system becomes good that was not whole when it was checked, that a trial of a system which is lost comes to its end, and that the system from before is whole, and boots where the other one does not load. A good slot of which such a disk has lost the root, and not the kernel, is refused at each boot, and nothing falls back by itself.",
	"A loader is held against its model in the cases that the real GRUB was run through. Firmware, boot ROM and other loaders are not tested here.",
	"The power cut models work in sectors of 512 bytes and lose, keep, tear or destroy them one by one; boot record and one update are also tried on disks that destroy 4 KiB at once, with what nobody wrote in them.",
	"Where more of what was not flushed may be lost or reordered than can be tried, a sample is: see Power cuts and faults.",
	"Reads may come from the wrong place (class C8); writes that go to the wrong place, and a controller that mixes up its mapping, are not tried.",
	"Class C9 has partitions that are too small, too large or read-only: no disk whose sectors have 4096 bytes for the host too (4Kn), and none that grows or shrinks during a run.",
	"Machines that are killed in an update have no watchdog, which would reset one that a busy host makes slow. It is in the stories.",
	"Cryptography, kernel, C library of the desk's tools, and Go's own libraries are taken as they are.",
	"Tests show that faults are absent where they look. A row of a standard that was tested against is not a certificate.",
	"Health checks say what their authors thought of: a release that works badly and passes them is committed.",
}
