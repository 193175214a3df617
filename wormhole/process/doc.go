// Package process starts the app that the agent wraps, passes signals to it,
// reaps every process the app leaves behind, and knows how the app ended.
//
// # One owner of all waits
//
// A program that is process 1 of a container, or a child subreaper, inherits
// orphans and must wait for any child, not only for those it started. A second
// wait beside that one (os/exec, os.Process.Wait) loses exit statuses to it.
// [Supervise] therefore makes one [Supervisor] the owner of every wait of the
// program, and nothing else in the program may start or wait for processes
// while it is open. The app is registered under the lock that reaping takes,
// so that an app which ends before Start returns keeps its status as well.
//
// # Signals
//
// SIGTERM and SIGINT are the agent's: they arrive on [Supervisor.Lifecycle].
// The first starts the drain, after which the agent stops the app with
// [Process.Stop]; a second one ends the drain at once. Every other signal goes
// once to the app's process group as it arrives, except SIGKILL and SIGSTOP,
// which nobody can catch, SIGCHLD, which is about this program's children,
// SIGPIPE and SIGPROF, which are about its own doings, and SIGURG, with which
// the Go runtime preempts goroutines. On a terminal SIGTTOU is ignored instead,
// so that the agent's log does not stop it. A SIGHUP or SIGINT that the program was
// started to ignore (nohup) stays ignored, by the app too.
//
// # Terminals
//
// The app leads a process group of its own. On a terminal, the agent's group
// stays in the foreground until the app reads or otherwise claims the terminal;
// then the app's group gets it and interactive programs work. So ^C drains an
// ordinary server, while a prompt handles its own ^C. ^Z stops the app and then
// the agent, so that the shell that started both regains the terminal, and fg
// continues both.
//
// # Platforms
//
// Linux has all of it. macOS has no subreaper and no /proc: groups, signals and
// statuses work, but processes that leave the app's group are neither found nor
// killed nor reaped, and [Process.ListeningPorts] returns [ErrUnsupported].
// Elsewhere, Windows included, only the app itself is started, waited for and
// killed; there is no polite signal, so [Process.Stop] kills after the grace.
package process
