// A worker of celery-node's, at the URL that is its argument.
const { createWorker } = require("celery-node")

const [url] = process.argv.slice(2)
const worker = createWorker(url, url)
worker.register("add", (a, b) => a + b)
worker.start()
console.log("ready")
