// Publish a text to task_queue, and wait for the broker's confirm.
// Needs github.com/rabbitmq/amqp091-go. Usage: go run send.go First message.
package main

import (
	"context"
	"log"
	"os"
	"strings"

	amqp "github.com/rabbitmq/amqp091-go"
)

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func main() {
	connection, err := amqp.Dial(os.Getenv("AMQP_URL"))
	check(err)
	defer connection.Close()
	channel, err := connection.Channel()
	check(err)
	_, err = channel.QueueDeclare("task_queue", true, false, false, false, nil)
	check(err)
	check(channel.Confirm(false))
	// Asked for before: a DeferredConfirmation of amqp091-go 1.5 misses a confirm that is quick.
	confirms := channel.NotifyPublish(make(chan amqp.Confirmation, 1))
	body := strings.Join(os.Args[1:], " ")
	check(channel.PublishWithContext(context.Background(), "", "task_queue", true, false,
		amqp.Publishing{MessageId: os.Getenv("MESSAGE_ID"), ContentType: "text/plain",
			DeliveryMode: amqp.Persistent, Body: []byte(body)}))
	if confirm := <-confirms; !confirm.Ack {
		log.Fatal("the broker refuses the message")
	}
	log.Print("sent ", body)
}
