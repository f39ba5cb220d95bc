package store_test

import "time"

var epoch = time.Unix(1700000000, 0)
