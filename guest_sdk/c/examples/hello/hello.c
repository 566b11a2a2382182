/*
 * The smallest guest: says who it is and powers off.
 */
#include <guest.h>

int main(int argc, char **argv)
{
    char name[64] = "?";

    printf("hello from domain %u\n", domain_id());
    xs_read(XS_NO_TRANSACTION, "name", name, sizeof(name)); /* relative: below /local/domain/<our id>; dom0 wrote it */
    printf("my name is %s\n", name);
    for (int i = 1; i < argc; i++)
        printf("argument %d: %s\n", i, argv[i]);
    return 0;
}
