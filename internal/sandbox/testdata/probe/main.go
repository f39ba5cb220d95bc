// Probe makes the system calls that it is given and prints what each says:
// NAME=NUMBER,ARG,ARG…, where the result of a NAME? is printed too.
package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
)

func main() {
	for _, arg := range os.Args[1:] {
		name, list, _ := strings.Cut(arg, "=")
		var nr [7]uintptr
		for i, n := range strings.Split(list, ",") {
			v, err := strconv.ParseUint(n, 0, strconv.IntSize)
			if err != nil {
				fmt.Println(err)
				os.Exit(1)
			}
			nr[i] = uintptr(v)
		}
		result, _, e := syscall.RawSyscall6(nr[0], nr[1], nr[2], nr[3], nr[4], nr[5], nr[6])
		switch {
		case e != 0:
			fmt.Println(name, e)
		case strings.HasSuffix(name, "?"):
			fmt.Println(name, int(result))
		default:
			fmt.Println(name, "ok")
		}
	}
}
