const http = require('http')

http.createServer((request, response) => {
  response.end(`You have reached ${process.env.SERVER_NAME}\n`)
}).listen(process.env.PORT || 8000)
