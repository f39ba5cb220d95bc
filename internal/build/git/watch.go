package git

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"time"
)

// watch ends, by cancel, a command all of whose processes wait for something
// that does not come: a server of git:// or ssh that fell silent, for which git
// itself has no limit. The function that it returns ends the watch.
func (r *runner) watch(group int, cancel context.CancelCauseFunc) (stop func()) {
	stall := r.g.stall()
	done := make(chan struct{})
	go func() {
		tick := time.NewTicker(max(stall/8, 10*time.Millisecond))
		defer tick.Stop()
		last, since := activity(group), time.Now()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
			}
			if now := activity(group); now != last || now == 0 {
				last, since = now, time.Now()
			} else if time.Since(since) >= stall {
				cancel(fmt.Errorf("nothing came for %s: %w", stall, os.ErrDeadlineExceeded))
				return
			}
		}
	}()
	return func() { close(done) }
}

// activity is a number that changes when a process of the group reads, writes
// or computes; 0 where the kernel does not tell.
func activity(group int) uint64 {
	d, err := os.Open("/proc")
	if err != nil {
		return 0
	}
	defer d.Close()
	names, _ := d.Readdirnames(-1)
	var sum uint64
	for _, n := range names {
		if n[0] < '0' || n[0] > '9' {
			continue
		}
		stat, err := os.ReadFile("/proc/" + n + "/stat")
		if err != nil {
			continue
		}
		// pid (name) state ppid pgrp …; the name may hold anything.
		f := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
		if len(f) < 13 || string(f[2]) != strconv.Itoa(group) {
			continue
		}
		io, err := os.ReadFile("/proc/" + n + "/io")
		if err != nil {
			continue
		}
		for _, v := range append(f[11:13:13], bytes.Fields(io)...) { // times, bytes, calls
			k, _ := strconv.ParseUint(string(v), 10, 64)
			sum += k
		}
	}
	return sum
}
