/* web PORT FILE: answers every request on 127.0.0.1:PORT with FILE. */
#include <arpa/inet.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void stop(int sig) { (void)sig; _exit(0); }

int main(int argc, char **argv) {
	if (argc != 3) { fprintf(stderr, "usage: web PORT FILE\n"); return 2; }
	struct sigaction sa = { .sa_handler = stop };
	sigaction(SIGTERM, &sa, NULL); /* pid 1 has no default action */
	sigaction(SIGINT, &sa, NULL);
	static char page[65536];
	FILE *f = fopen(argv[2], "r");
	if (!f) { perror(argv[2]); return 1; }
	size_t n = fread(page, 1, sizeof page, f);
	fclose(f);
	int s = socket(AF_INET, SOCK_STREAM, 0), on = 1;
	setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons(atoi(argv[1])) };
	a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (bind(s, (struct sockaddr *)&a, sizeof a) || listen(s, 16)) { perror("listen"); return 1; }
	printf("listening on 127.0.0.1:%s as uid %d\n", argv[1], getuid());
	fflush(stdout);
	for (;;) {
		int c = accept(s, NULL, NULL);
		if (c < 0) continue;
		char request[4096], head[128];
		if (read(c, request, sizeof request) > 0) {
			int h = snprintf(head, sizeof head, "HTTP/1.0 200 OK\r\nContent-Type: text/html\r\nContent-Length: %zu\r\n\r\n", n);
			if (write(c, head, h) != h || write(c, page, n) != (ssize_t)n) perror("write");
		}
		close(c);
	}
}
