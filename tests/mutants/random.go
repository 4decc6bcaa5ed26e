package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"slices"
)

// A change is one small bug of the random kind, at one place.
type change struct {
	File string `json:"file"`
	Line int    `json:"line"`
	What string `json:"what"`
}

// piece is text that goes into a file in front of the byte at, in the place of the bytes up to end.
type piece struct {
	at, end int
	text    string
}

// variants puts all changes of a package into its files at once, each behind a number: the
// test binary is built once, and is the mutant whose number is in its environment.
type variants struct {
	changes []change // number n is changes[n-1]
	spoiled map[string]bool
}

// switches is the file that a package gets with its variants.
const switches = `package %s

import (
	"cmp"
	"os"
	"strconv"
	"sync/atomic"
)

var mutantChosen, _ = strconv.Atoi(os.Getenv("MUTANT"))
var mutantSeen [%d]atomic.Bool

func mutantOn(n int) bool {
	if mutantChosen < 0 && !mutantSeen[n].Swap(true) {
		f, err := os.OpenFile(os.Getenv("MUTANTS_SEEN"), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
		if err != nil {
			panic(err)
		}
		f.WriteString(strconv.Itoa(n) + "\n")
		f.Close()
	}
	return mutantChosen == n
}

type mutantNumber interface {
	~int | ~int8 | ~int16 | ~int32 | ~int64 | ~uint | ~uint8 | ~uint16 | ~uint32 | ~uint64 | ~uintptr | ~float32 | ~float64
}

func mutantNot(n int, b bool) bool                     { return b != mutantOn(n) }
func mutantAnd(n int, a bool, b func() bool) bool      { if mutantOn(n) { return a || b() }; return a && b() }
func mutantOr(n int, a bool, b func() bool) bool       { if mutantOn(n) { return a && b() }; return a || b() }
func mutantLess[T cmp.Ordered](n int, a, b T) bool     { return a < b || mutantOn(n) && a == b }
func mutantAtMost[T cmp.Ordered](n int, a, b T) bool   { return a < b || !mutantOn(n) && a == b }
func mutantSum[T mutantNumber](n int, a, b T) T        { if mutantOn(n) { return a - b }; return a + b }
func mutantDifference[T mutantNumber](n int, a, b T) T { if mutantOn(n) { return a + b }; return a - b }
`

// add returns the text of a file with its variants in it. Lines stay where they are.
func (v *variants) add(name string, text []byte) ([]byte, string, error) {
	set := token.NewFileSet()
	file, err := parser.ParseFile(set, name, text, parser.SkipObjectResolution)
	if err != nil {
		return nil, "", err
	}
	var pieces []piece
	at := func(p token.Pos) int { return set.Position(p).Offset }
	number := func(p token.Pos, what string) (int, bool) {
		c := change{name, set.Position(p).Line, what}
		if v.spoiled[fmt.Sprint(c.File, ":", c.Line)] {
			return 0, false
		}
		v.changes = append(v.changes, c)
		return len(v.changes), true
	}
	// around puts one call around an expression; of two that begin at one place, the outer comes
	// first, which is the order of Inspect.
	around := func(e ast.Expr, format string, what string) {
		if n, ok := number(e.Pos(), what); ok {
			pieces = append(pieces, piece{at(e.Pos()), at(e.Pos()), fmt.Sprintf(format, n)}, piece{at(e.End()), at(e.End()), ")"})
		}
	}
	binary := func(e *ast.BinaryExpr, function, between, end, what string) {
		n, ok := number(e.OpPos, what)
		if !ok {
			return
		}
		pieces = append(pieces,
			piece{at(e.Pos()), at(e.Pos()), fmt.Sprintf("%s(%d, ", function, n)},
			piece{at(e.OpPos), at(e.OpPos) + len(e.Op.String()), between},
			piece{at(e.End()), at(e.End()), end})
	}
	statements := func(list []ast.Stmt) {
		for _, s := range list {
			what := ""
			switch s := s.(type) {
			case *ast.ExprStmt:
				if call, ok := s.X.(*ast.CallExpr); ok && !isNamed(call.Fun, "panic") {
					what = "call left out"
				}
			case *ast.AssignStmt:
				if s.Tok != token.DEFINE && !isNamed(s.Lhs[0], "_") {
					what = "assignment left out"
				}
			case *ast.IncDecStmt:
				what = "assignment left out"
			}
			if what == "" {
				continue
			}
			if n, ok := number(s.Pos(), what); ok {
				pieces = append(pieces, piece{at(s.Pos()), at(s.Pos()), fmt.Sprintf("if !mutantOn(%d) { ", n)}, piece{at(s.End()), at(s.End()), " }"})
			}
		}
	}
	loops := map[ast.Expr]bool{} // conditions that a negation would make endless
	ast.Inspect(file, func(node ast.Node) bool {
		switch n := node.(type) {
		case *ast.GenDecl:
			return n.Tok == token.VAR
		case *ast.ArrayType, *ast.IndexListExpr:
			return false
		case *ast.BlockStmt:
			statements(n.List)
		case *ast.CaseClause:
			statements(n.Body)
		case *ast.CommClause:
			statements(n.Body)
		case *ast.ForStmt:
			if n.Cond != nil {
				loops[n.Cond] = true
			}
		case *ast.IfStmt:
			if _, ok := n.Cond.(*ast.BinaryExpr); !ok {
				around(n.Cond, "mutantNot(%d, ", "condition negated")
			}
		case *ast.BinaryExpr:
			switch n.Op {
			case token.EQL, token.NEQ:
				if !loops[n] {
					around(n, "mutantNot(%d, ", n.Op.String()+" negated")
				}
			case token.LSS, token.LEQ, token.GTR, token.GEQ:
				if !loops[n] {
					around(n, "mutantNot(%d, ", n.Op.String()+" negated")
				}
				switch n.Op {
				case token.LSS:
					binary(n, "mutantLess", ",", ")", "< became <=")
				case token.LEQ:
					binary(n, "mutantAtMost", ",", ")", "<= became <")
				case token.GTR: // a > b is not a <= b
					binary(n, "!mutantAtMost", ",", ")", "> became >=")
				case token.GEQ:
					binary(n, "!mutantLess", ",", ")", ">= became >")
				}
			case token.LAND:
				binary(n, "mutantAnd", ", func() bool { return (", ") })", "&& became ||")
			case token.LOR:
				binary(n, "mutantOr", ", func() bool { return (", ") })", "|| became &&")
			case token.ADD:
				binary(n, "mutantSum", ",", ")", "+ became -")
			case token.SUB:
				binary(n, "mutantDifference", ",", ")", "- became +")
			}
		}
		return true
	})
	return splice(text, pieces), file.Name.Name, nil
}

func isNamed(e ast.Expr, name string) bool {
	id, ok := e.(*ast.Ident)
	return ok && id.Name == name
}

// splice puts the pieces into a text. What ends comes before what begins at the same place, the
// inner end before the outer.
func splice(text []byte, pieces []piece) []byte {
	order := make([]int, len(pieces))
	for i := range order {
		order[i] = i
	}
	ends := func(p piece) bool { return p.text[0] == ')' || p.text[0] == ' ' }
	slices.SortStableFunc(order, func(i, j int) int {
		a, b := pieces[i], pieces[j]
		switch {
		case a.at != b.at:
			return a.at - b.at
		case ends(a) != ends(b):
			if ends(a) {
				return -1
			}
			return 1
		case ends(a):
			return j - i // found later is further inside
		}
		return i - j
	})
	var out []byte
	done := 0
	for _, i := range order {
		p := pieces[i]
		out = append(append(out, text[done:p.at]...), p.text...)
		done = p.end
	}
	return append(out, text[done:]...)
}
