// Tiny is the user space of the tiny system: /sbin/init, a shell and commands in
// one program, chosen by the name it is called by. "tiny COMMAND ..." names the
// command as an argument. Package guest says what there is.
package main

import (
	"os"

	"github.com/tandem-ota/tandem/qemu/tiny/guest"
)

func main() {
	os.Exit(guest.Main(os.Args, os.Stdin, os.Stdout, os.Stderr))
}
