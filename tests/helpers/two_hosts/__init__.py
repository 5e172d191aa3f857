"""
Helper: two hosts on one filesystem that both have mounted, and what their processes do with a cache on it.

A host is a set of namespaces: for the network, mounts, processes and the name; and it has a boot id of its own. So two
hosts on one kernel are to each other what two machines are: they see no process of one another, and share nothing but
the filesystem. A host that is killed is gone at once, with all its processes.

``filesystems.opened("moosefs")`` gives a filesystem; its method ``run`` runs a function of ``scenarios`` there.
Everything that was started ends with it, also after a failure.
"""
