/* Name servers that never answer: for programs that are started with this library in LD_PRELOAD.
 *
 * A lookup of a name that ends in .dead.example says so on stderr, and does not end. A thread that looks a name up cannot be told
 * from one that waits for a name server: the system's resolver is not interrupted either.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const char dead[] = ".dead.example";

int getaddrinfo(const char *name, const char *service, const struct addrinfo *hints, struct addrinfo **found)
{
    size_t length = name == NULL ? 0 : strlen(name);
    if (length >= sizeof dead && strcmp(name + length - (sizeof dead - 1), dead) == 0) {
        dprintf(STDERR_FILENO, "looking up %s\n", name);
        for (;;)
            pause();
    }
    int (*next)(const char *, const char *, const struct addrinfo *, struct addrinfo **) = dlsym(RTLD_NEXT, "getaddrinfo");
    return next(name, service, hints, found);
}
