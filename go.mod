module github.com/netdriver/netdriver

go 1.26.0
