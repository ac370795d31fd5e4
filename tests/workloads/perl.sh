# Perl's own input and output.
perl -e '
use strict; use Fcntl; use File::Copy; use File::Path; use File::Temp;
open my $f, ">", "lines" or die; print $f "line $_\n" for 1 .. 5000; close $f;
open $f, "+<", "lines"; seek $f, 100, 0; print $f "OVER"; truncate $f, 9999; close $f;
sysopen $f, "raw", O_RDWR | O_CREAT | O_EXCL, 0640; syswrite $f, "abc" x 100; sysseek $f, 5000, 0; syswrite $f, "end"; close $f;
open $f, ">>", "lines"; my $old = select $f; $| = 1; print "unbuffered $_\n" for 1 .. 20; select $old; close $f;
copy "lines", "copied"; move "copied", "moved"; link "moved", "linked"; symlink "moved", "soft"; chmod 0600, "moved"; utime 5, 6, "raw";
mkpath "a/b/c"; rmtree "a/b"; rename "a", "z"; mkdir "y", 0700; rmdir "y";
my $t = File::Temp->new(DIR => "."); print $t "temporary"; close $t;
open my $p, "|-", "tee through > /dev/null"; print $p "piped\n"; close $p;
print -s "lines", " ", -s "raw", "\n";'
