"""GPU hosts: machines join with a token, run jobs, are paid, and their owners see it.

What *is* stands in a database (`store`, the only place with SQL), what *happens* is delivered by Celery, what is
*decided* are functions from values to values:

    wire                    the messages between a machine and the gateway
    tables, migrations      the data
    records                 the values that the store gives out and takes in
    wallets, node_keys      who somebody is: addresses, texts and signatures
    leases, placement       what becomes of a job, and which node gets it
    pay, reputation         what an attempt earns, and how far a node is trusted
    commands                what may be run: templates with typed parameters, images by digest
    store                   everything that is kept, one class a noun
"""
