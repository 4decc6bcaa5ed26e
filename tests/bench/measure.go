package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// cost is what a program, or several one after the other, took.
type cost struct {
	CPU     float64 // seconds, user and system
	Wall    float64 // seconds
	Peak    int64   // bytes of resident memory, of the largest
	Read    int64   // bytes through read and its like; what is mapped is not seen
	Written int64   // bytes through write and its like
}

func (c *cost) add(d cost) {
	c.CPU += d.CPU
	c.Wall += d.Wall
	c.Peak = max(c.Peak, d.Peak)
	c.Read += d.Read
	c.Written += d.Written
}

// own runs a step of this program (steps.go), measured.
func (b *bench) own(ctx context.Context, args ...string) (cost, []byte, error) {
	return b.measure(ctx, append([]string{b.self, "step"}, args...)...)
}

// measure runs a program to its end and returns what it printed.
//
// The peak is the kernel's count for the process (VmHWM of proc(5)), looked at while it runs; for large
// and short-lived ones the count at the end, which is exact, but begins at the size of this program.
func (b *bench) measure(ctx context.Context, argv ...string) (cost, []byte, error) {
	ctx, stop := context.WithTimeout(ctx, b.limit)
	defer stop()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	var said, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &complaint
	if argv[0] == b.self {
		cmd.Stderr = io.MultiWriter(&complaint, b.log)
	}
	begin := time.Now()
	if err := cmd.Start(); err != nil {
		return cost{}, nil, err
	}
	proc := "/proc/" + strconv.Itoa(cmd.Process.Pid)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		// The process stays to be asked about until Wait takes it.
		for errors.Is(unix.Waitid(unix.P_PID, cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil), unix.EINTR) {
		}
	}()
	var seen int64
	looks := 0
	// Looking costs CPU time as well, which long steps need not pay often.
	for pause, running := time.Millisecond, true; running; pause = min(pause*11/10, 200*time.Millisecond) {
		if n := field(proc+"/status", "VmHWM:") << 10; n > 0 {
			seen = n
		}
		looks++
		select {
		case <-ended:
			running = false
		case <-time.After(pause):
		}
	}
	c := cost{Wall: time.Since(begin).Seconds(), Read: field(proc+"/io", "rchar:"), Written: field(proc+"/io", "wchar:")}
	if err := cmd.Wait(); err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("%w after %s", ctx.Err(), b.limit)
		}
		return c, nil, fmt.Errorf("%s: %w: %s", argv[0], err, lastLine(complaint.Bytes()))
	}
	c.CPU = (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds()
	c.Peak = seen
	if atEnd := cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss << 10; atEnd > 64<<20 || looks < 50 {
		c.Peak = atEnd
	}
	return c, said.Bytes(), nil
}

// field is a number in one of the kernel's files about a process, 0 if it is not there.
func field(file, name string) int64 {
	text, err := os.ReadFile(file)
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut("\n"+string(text), "\n"+name)
	words := strings.Fields(rest)
	if len(words) == 0 {
		return 0
	}
	n, err := strconv.ParseInt(words[0], 10, 64)
	if err != nil {
		return 0
	}
	return n
}

func lastLine(b []byte) string {
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return lines[len(lines)-1]
}

// limits are what the machine can do at best with the new image, in the same run. What decompressing takes is in the
// row of zstd -9.
type limits struct {
	SHA256 cost // one pass
	Write  cost // in order, with one sync at the end
}

func (b *bench) limits(ctx context.Context, m made, work string) (l limits, err error) {
	out := filepath.Join(work, "limit.img")
	defer os.Remove(out)
	if l.SHA256, _, err = b.own(ctx, "sha256", m.New.Path); err != nil {
		return l, err
	}
	l.Write, _, err = b.own(ctx, "write", m.New.Path, out)
	return l, err
}

// same tells whether two files have the same content.
func same(one, other string) (bool, error) {
	a, err := os.Open(one)
	if err != nil {
		return false, err
	}
	defer a.Close()
	b, err := os.Open(other)
	if err != nil {
		return false, err
	}
	defer b.Close()
	left, right := make([]byte, 1<<18), make([]byte, 1<<18)
	for {
		n, err := io.ReadFull(a, left)
		m, err2 := io.ReadFull(b, right)
		if !bytes.Equal(left[:n], right[:m]) {
			return false, nil
		}
		if n < len(left) {
			// Both end here, or cannot be read further.
			for _, err := range []error{err, err2} {
				if err != io.EOF && err != io.ErrUnexpectedEOF {
					return false, err
				}
			}
			return true, nil
		}
	}
}

func digest(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	_, err = io.Copy(h, f)
	return hex.EncodeToString(h.Sum(nil)), err
}

// available is the memory that a new program could have, in bytes.
func available() int64 { return field("/proc/meminfo", "MemAvailable:") << 10 }
