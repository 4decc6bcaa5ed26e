# features.awk sums the symbols of the device program by feature. Input: go tool nm -size.
# Variables: bss, the address from which on nothing is in the file; file, its size.

function feature(name) {
  sub(/\[.*/, "", name)   # type arguments name other packages
  gsub(/%2e/, ".", name)
  if (sub(/^github\.com\/tandem-ota\/tandem\//, "", name)) {
    if (name ~ /^updater\/delta\/blocks/)  return "index payloads"
    if (name ~ /^updater\/delta\/predict/) return "deltas: executables"
    if (name ~ /^updater\/delta\/recode/)  return "deltas: compressed content"
    if (name ~ /^updater\/delta/)          return "deltas: frames"
    if (name ~ /^updater\/(manifest|trust|release)/) return "releases and who signed them"
    if (name ~ /^updater/)                 return "updates: the core, journal, health, handlers"
    if (name ~ /^(bootctl|boards)/)        return "boot record, watchdog, boards"
    if (name ~ /^partition/)               return "partitions and verity"
    if (name ~ /^tpm/)                     return "TPM"
    if (name ~ /^transport/)               return "link: MQTT"
    return "updates: the core, journal, health, handlers"
  }
  if (name ~ /^main\./)                                  return "commands"
  if (name ~ /^github\.com\/klauspost\//)                return "zstd"
  if (name ~ /^github\.com\/google\/go-tpm/)             return "TPM"
  if (name ~ /^(github\.com\/(eclipse|gorilla)\/|golang\.org\/x\/(net|sync)\/)/) return "link: MQTT"
  if (name ~ /^(crypto|math\/big|encoding\/asn1|vendor\/golang\.org\/x\/crypto)/) return "TLS and cryptography"
  if (name ~ /^(net|mime|compress|vendor\/)/)            return "network and HTTP"
  if (name ~ /^(encoding\/json|reflect|internal\/fmtsort|internal\/reflectlite)/) return "JSON and reflection"
  if (name ~ /^(type:|go:)/)                             return "types, stack maps"
  if (name ~ /^(runtime|internal\/runtime|internal\/abi)/) return "Go runtime"
  return "rest of the standard library"
}

$3 !~ /^[Uu]$/ && sprintf("%16s", $1) < sprintf("%16s", bss) {
  name = $4
  for (i = 5; i <= NF; i++) name = name " " $i
  bytes[feature(name)] += $2
  sum += $2
}

END {
  printf "%-48s %12s\n", "feature (updater, linux/amd64)", "bytes"
  fflush()
  for (f in bytes) printf "%-48s %12d\n", f, bytes[f] | "sort -k1.50nr"
  close("sort -k1.50nr")
  printf "%-48s %12d\n", "tables of functions, types, strings", file - sum
}
