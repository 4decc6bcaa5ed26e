package crosscheck

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/tandem-ota/tandem/tests/workbench"
)

// long says that there is time for all, and not for a sample only.
var long = os.Getenv("TANDEM_LONG") != ""

// shop is where the goods of all tests are.
var shop struct {
	dir   string
	goods *workbench.Goods
}

func TestMain(m *testing.M) {
	var err error
	if shop.dir, err = os.MkdirTemp("", "crosscheck"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(shop.dir)
	os.Exit(code)
}

// theGoods are made by the first test that asks for them.
func theGoods(t *testing.T) *workbench.Goods {
	t.Helper()
	if shop.goods == nil {
		shop.goods = workbench.Make(t, filepath.Join("..", ".."), shop.dir)
	}
	return shop.goods
}

// need ends a test whose tool is not here: on a desk with a reason, in CI with a
// failure.
func need(t *testing.T, program, from string) {
	t.Helper()
	_, err := exec.LookPath(program)
	switch {
	case err != nil && os.Getenv("TANDEM_CI") != "":
		t.Fatalf("%v; install %s", err, from)
	case err != nil:
		t.Skipf("%v; it comes with %s", err, from)
	}
}
